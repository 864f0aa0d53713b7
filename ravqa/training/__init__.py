"""Training of retrievers and readers, from a settings file to a folder with checkpoints.

What trains is a `Task` (`ravqa.training.task`): a model, its examples, the loss of a batch, and how
it is validated and saved. `ravqa.training.loop.train` takes any task through the same loop:

    settings ──▶ Task ──train──▶ run folder: config.yaml, metrics.jsonl, best/, last/, report.html

The loop is exact and restartable. Which examples a step sees, and every random number that it
draws, depend on the seed and the step alone, so that a run that was killed continues with the
losses that it would have had. What else must survive (weights, the optimizer's moments, mined
negatives) is in `last/`, which is replaced as a whole.

To add a kind of training, write a `Task` and its settings with a `loop: LoopConfig` in a file
beside `retriever.py`, and a command in `ravqa/cli/train.py`.
"""
