from model_utils.entry import convert
from tests.toy.task import ToyTask

if __name__ == "__main__":
    convert(ToyTask())
