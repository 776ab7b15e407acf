"""ModelZoo's name for the device functions.

ModelZoo's own module takes them from ``moxing_adapter`` in a ModelArts job and from
``local_adapter`` otherwise. Both read the same environment, so there is one set here.
"""

from model_utils.local_adapter import (
    get_device_id,
    get_device_num,
    get_job_id,
    get_local_device_num,
    get_rank_id,
)

__all__ = [
    "get_device_id",
    "get_device_num",
    "get_job_id",
    "get_local_device_num",
    "get_rank_id",
]
