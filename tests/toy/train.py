from model_utils.entry import train
from tests.toy.task import ToyTask

if __name__ == "__main__":
    train(ToyTask())
