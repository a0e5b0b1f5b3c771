"""Figures over the samples of all ranks: accuracy, means such as the loss, the confusion matrix.

Owns: what is counted, and the sums over the ranks. Must not know: models, how data is read.

Every rank counts its own samples with `update`; `compute` adds the counts of all ranks up and divides
once. So the figure is that of all samples together, however they are split: in uneven parts, and with
no sample at all on some rank. All sums are exact; the same samples give the same bits on any number of
ranks, in any order, and after a resume.

Example::

    from dptrain import metrics

    mean_loss, accuracy = metrics.Mean(), metrics.Accuracy()
    for images, labels in loader:
        logits = model(images)
        mean_loss.update(F.cross_entropy(logits, labels), len(labels))
        accuracy.update(logits, labels)
    loss, right = mean_loss.compute(), accuracy.compute()      # on all ranks
    print(f"loss {loss:.4f}, accuracy {right:.2%}")

`compute` and `state_dict` are collective: call them on all ranks. For the next epoch: `reset`.
"""

from dptrain.metrics.classes import Accuracy, ConfusionMatrix
from dptrain.metrics.mean import Mean
from dptrain.metrics.metric import Metric

__all__ = ["Accuracy", "ConfusionMatrix", "Mean", "Metric"]
