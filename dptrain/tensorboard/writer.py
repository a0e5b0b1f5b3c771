"""`SummaryWriter`: PyTorch's calls for writing what TensorBoard shows.

Owns: the calls (those for plugins are in `plugin_calls`), their arguments and defaults. Must not know: how a summary is made, which ranks write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dptrain.tensorboard import embedding, pictures, plugins, summary
from dptrain.tensorboard.graph import graph
from dptrain.tensorboard.plugin_calls import PluginCalls
from dptrain.tensorboard.run_files import on_writing_ranks, own_rank
from dptrain.tensorboard.values import make_np


class SummaryWriter(PluginCalls):
    """Writes values, pictures and graphs of a run for TensorBoard; see `torch.utils.tensorboard`.

    Calls are not collective and need not be made on all ranks. Values are those of the rank that
    writes: average over the ranks first where that is meant (`dptrain.metrics`).

    Args:
        log_dir: the run's folder; by default `runs/<date>_<time>_<host><comment>`.
        comment: the end of the default folder's name.
        purge_step: TensorBoard forgets what earlier files of the folder say from this step on: where a
            run goes on after a crash.
        max_queue: how many events may wait to be written.
        flush_secs: how often events are brought to disk, in seconds.
        filename_suffix: the end of the files' names.
        ranks: which rank writes: a number; or "all", or several numbers, each of them into its own
            folder `log_dir/rank<number>`.

    Raises:
        ImportError: tensorboardX is not installed (extra `tensorboard`); on every rank.
        ValueError: several ranks without `log_dir`, of which each would make up its own.

    Attributes:
        writes: whether this rank does.
    """

    # ---- numbers ---------------------------------------------------------------------------------

    @on_writing_ranks
    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """One number per step.

        Args:
            tag: its name; what is before a slash groups.
            scalar_value: a number, or a tensor of one element.
            new_style: as a tensor, which TensorBoard loads faster.
            double_precision: as float64; only the new style has it.
        """
        made = summary.scalar(
            tag, scalar_value, new_style=new_style, double_precision=double_precision
        )
        self._add(made, global_step, walltime)

    @on_writing_ranks
    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Several numbers in one chart: one file, in a folder of its own, for each name of the dict."""
        walltime = time.time() if walltime is None else walltime
        run = self._get_file_writer().get_logdir()
        assert self.all_writers is not None
        for tag, value in tag_scalar_dict.items():
            place = f"{run}/{main_tag.replace('/', '_')}_{tag}"
            if place not in self.all_writers:
                self.all_writers[place] = self._open(place)
            self.all_writers[place].add_summary(
                summary.scalar(main_tag, value), global_step, walltime
            )

    @on_writing_ranks
    def add_tensor(
        self, tag: str, tensor: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """All values of a tensor."""
        self._add(summary.tensor_proto(tag, tensor), global_step, walltime)

    @on_writing_ranks
    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """How values are distributed.

        Args:
            bins: TensorBoard's own, or what `numpy.histogram` takes.
            max_bins: about how many at most.

        Raises:
            ValueError: no value, or none inside the bins.
        """
        if isinstance(bins, str) and bins == "tensorflow":
            bins = summary.default_bins()
        self._add(summary.histogram(tag, values, bins, max_bins), global_step, walltime)

    @on_writing_ranks
    def add_histogram_raw(
        self,
        tag: str,
        min: float,
        max: float,
        num: float,
        sum: float,
        sum_squares: float,
        bucket_limits: Sequence[float],
        bucket_counts: Sequence[float],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """A histogram that was counted elsewhere.

        Args:
            bucket_limits: upper limits of the buckets.
            bucket_counts: as many.

        Raises:
            ValueError: not as many.
        """
        if len(bucket_limits) != len(bucket_counts):
            raise ValueError(
                f"len(bucket_limits) != len(bucket_counts): {len(bucket_limits)} and {len(bucket_counts)}"
            )
        made = summary.histogram_raw(
            tag, min, max, num, sum, sum_squares, bucket_limits, bucket_counts
        )
        self._add(made, global_step, walltime)

    # ---- pictures, sound, text -------------------------------------------------------------------

    @on_writing_ranks
    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """An image: uint8, or values in [0, 1].

        Args:
            img_tensor: 3 channels, 1 or 4.
            dataformats: its dimensions: CHW, HWC, HW.

        Raises:
            AssertionError: the dimensions are others.
            ImportError: pillow is not installed.
        """
        self._add(pictures.image(tag, img_tensor, dataformats=dataformats), global_step, walltime)

    @on_writing_ranks
    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Several images in rows of eight; `dataformats` is NCHW or NHWC."""
        self._add(pictures.image(tag, img_tensor, dataformats=dataformats), global_step, walltime)

    @on_writing_ranks
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: str | Sequence[str] | None = None,
    ) -> None:
        """An image with boxes.

        Args:
            box_tensor: (N, 4): left, top, right, bottom in pixels.
            rescale: factor of the image's size.
            labels: one per box; another number of them is left out.
        """
        if isinstance(labels, str):
            labels = [labels]
        if labels is not None and len(labels) != len(box_tensor):
            labels = None
        made = pictures.image_boxes(tag, img_tensor, box_tensor, rescale, dataformats, labels)
        self._add(made, global_step, walltime)

    @on_writing_ranks
    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: Any = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """A matplotlib figure, or a list of them, as an image.

        Args:
            close: close them, so that a training loop does not pile them up.
        """
        pixels = pictures.figure_to_image(figure, close)
        dataformats = "NCHW" if isinstance(figure, list) else "CHW"
        self.add_image(tag, pixels, global_step, walltime, dataformats)

    @on_writing_ranks
    def add_video(
        self,
        tag: str,
        vid_tensor: Any,
        global_step: Any = None,
        fps: float = 4,
        walltime: float | None = None,
    ) -> None:
        """Films (N, T, C, H, W) side by side, as an animated GIF."""
        self._add(pictures.video(tag, vid_tensor, fps), global_step, walltime)

    @on_writing_ranks
    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """A sound (L) of values in [-1, 1]."""
        self._add(summary.audio(tag, snd_tensor, sample_rate), global_step, walltime)

    @on_writing_ranks
    def add_text(
        self,
        tag: str,
        text_string: str,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """A text in Markdown."""
        self._add(summary.text(tag, text_string), global_step, walltime)

    # ---- models ----------------------------------------------------------------------------------

    @on_writing_ranks
    def add_graph(
        self,
        model: Any,
        input_to_model: Any = None,
        verbose: bool = False,
        use_strict_trace: bool = True,
    ) -> None:
        """The graph that autograd records when `model` runs once on this rank, in evaluation mode.

        Of DistributedDataParallel and DataParallel, the model inside is drawn. Parameters, modes and
        random numbers are untouched.

        Args:
            input_to_model: the input, or a tuple of inputs.
            verbose: print the nodes.
            use_strict_trace: not needed; lists and dicts are followed either way.

        Raises:
            RuntimeError: nothing was recorded: all of it runs under `no_grad` or on integers.
        """
        self._get_file_writer().add_graph(graph(model, input_to_model, verbose, use_strict_trace))

    @on_writing_ranks
    def add_embedding(
        self,
        mat: Any,
        metadata: Sequence[Any] | None = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: str = "default",
        metadata_header: Sequence[str] | None = None,
    ) -> None:
        """Points for TensorBoard's projector.

        Args:
            mat: (N, D).
            metadata: N labels, or N rows of them under `metadata_header`.
            label_img: (N, C, H, W), values in [0, 1].

        Raises:
            AssertionError: numbers of rows or columns differ.
        """
        step = 0 if global_step is None else int(global_step)
        run = Path(self._get_file_writer().get_logdir())
        subdir = f"{step:05d}/{embedding.encode(tag)}"
        images = None if label_img is None else make_np(label_img)
        embedding.write_embedding(run / subdir, make_np(mat), metadata, images, metadata_header)
        # The page reads one file about all embeddings of the run.
        self._embeddings += embedding.entry(
            subdir, tag, step, metadata is not None, None if images is None else images.shape[2:]
        )
        (run / "projector_config.pbtxt").write_text(self._embeddings, encoding="utf-8")

    # ---- runs compared ---------------------------------------------------------------------------

    @on_writing_ranks
    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """What was chosen for this run, and how well it did.

        Args:
            hparam_dict: name -> number, string, bool, None.
            metric_dict: name -> number; the names must not be those of other scalars.
            hparam_domain_discrete: name -> all values that may be chosen.
            run_name: the folder below `log_dir`; by default the time.

        Raises:
            TypeError: no dicts.
            ValueError: a hyperparameter of another kind.
        """
        made = plugins.hparams(hparam_dict, metric_dict, hparam_domain_discrete)
        folder = os.path.join(self._get_file_writer().get_logdir(), run_name or str(time.time()))
        with SummaryWriter(folder, ranks=own_rank()) as writer:
            for part in made:
                writer._add(part, global_step)
            for name, value in metric_dict.items():
                writer.add_scalar(name, value, global_step)
