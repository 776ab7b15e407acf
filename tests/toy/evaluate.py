from model_utils.entry import evaluate
from tests.toy.task import ToyTask

if __name__ == "__main__":
    evaluate(ToyTask())
