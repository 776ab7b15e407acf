from model_utils.entry import export
from tests.toy.task import ToyTask

if __name__ == "__main__":
    export(ToyTask())
