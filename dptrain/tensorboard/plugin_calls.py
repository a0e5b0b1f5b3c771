"""The calls for TensorBoard's plugins: meshes, precision and recall, charts of several scalars.

Owns: those calls, their arguments and defaults. Must not know: how a summary is made, which ranks write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dptrain.tensorboard import plugins
from dptrain.tensorboard.run_files import RunFiles, on_writing_ranks


class PluginCalls(RunFiles):
    """Part of `SummaryWriter`."""

    @on_writing_ranks
    def add_mesh(
        self,
        tag: str,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: Mapping[str, Any] | None = None,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Meshes or clouds of points.

        Args:
            vertices: (B, N, 3).
            colors: (B, N, 3), uint8 or in [0, 1].
            faces: (B, M, 3), indices of vertices.
            config_dict: camera, lights and material for the page's renderer.
        """
        self._add(plugins.mesh(tag, vertices, colors, faces, config_dict), global_step, walltime)

    @on_writing_ranks
    def add_pr_curve(
        self,
        tag: str,
        labels: Any,
        predictions: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Precision and recall of a classifier.

        Args:
            labels: 0 or 1, or bools.
            predictions: probabilities in [0, 1], of the same shape.
            num_thresholds: at most 127.
            weights: of the samples.
        """
        made = plugins.pr_curve(tag, labels, predictions, num_thresholds, weights)
        self._add(made, global_step, walltime)

    @on_writing_ranks
    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Precision and recall that were counted elsewhere: one value per threshold."""
        made = plugins.pr_curve_raw(
            tag, true_positive_counts, false_positive_counts, true_negative_counts,
            false_negative_counts, precision, recall, num_thresholds, weights,
        )  # fmt: skip
        self._add(made, global_step, walltime)

    @on_writing_ranks
    def add_custom_scalars_multilinechart(
        self, tags: Sequence[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """One chart of several scalars."""
        self.add_custom_scalars({category: {title: ["Multiline", tags]}})

    @on_writing_ranks
    def add_custom_scalars_marginchart(
        self, tags: Sequence[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """One chart of a scalar between two others: value, lower, upper."""
        self.add_custom_scalars({category: {title: ["Margin", tags]}})

    @on_writing_ranks
    def add_custom_scalars(self, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Charts of several scalars; once per writer.

        Args:
            layout: category -> chart -> ["Multiline", tags] or ["Margin", [value, lower, upper]].
        """
        self._add(plugins.custom_scalars(layout))
