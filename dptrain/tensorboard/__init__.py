"""What a run writes for TensorBoard: `torch.utils.tensorboard`'s names.

Owns: the writer, the event file and what is in it. Must not know: how a model is trained.

Example::

    from dptrain.tensorboard import SummaryWriter

    with SummaryWriter("runs/first") as writer:      # rank 0 writes, the other ranks do nothing
        writer.add_graph(model, images)
        for step, loss in enumerate(losses):
            writer.add_scalar("loss/train", loss, step)

and `tensorboard --logdir runs`. The extra `tensorboard` brings tensorboardX, whose record format and
messages are used; TensorBoard itself is needed only to look at the files.

========= ====================================================================================
writer    `SummaryWriter`: the calls                    events    the event file and its thread
summary   scalars, histograms, text, sound, tensors     plugins   hyperparameters, curves, meshes
pictures  images, figures, boxes, films                 graph     a model's graph
embedding the projector's files                         protos    tensorboardX's messages
========= ====================================================================================
"""

from dptrain.tensorboard.events import FileWriter
from dptrain.tensorboard.writer import SummaryWriter

__all__ = ["FileWriter", "SummaryWriter"]
