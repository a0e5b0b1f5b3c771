"""One line of samples per operation: views as copies, parts of a given number."""

from sample_args import Call, c, call, i, x

SAMPLES: dict[str, list[Call]] = {
    "as_strided_copy": [call(x(3, 4), (2, 2), (1, 5), 1)],
    # PyTorch's own gradient at the input keeps the wrong places: see test_index_types.py.
    "as_strided_scatter": [call(c(3, 4), x(2, 2), (2, 2), (1, 5), 1), call(c(3), x(), (), (), 2)],
    "detach_copy": [call(c(3, 4))],  # no derivative in PyTorch either
    "diagonal_copy": [call(x(3, 4), 1)],
    "expand_copy": [call(x(3, 1), (2, 3, 4))],
    "narrow_copy": [call(x(3, 4), 1, 1, 2)],
    "nonzero_static": [
        call(i(3, 4, high=2), size=3),
        call(i(3, 4, high=2), size=20, fill_value=7),
        call(i(), size=2),
    ],
    "permute_copy": [call(x(2, 3, 4), (2, 0, 1))],
    "select_copy": [call(x(3, 4), 1, -1)],
    "split_copy": [call(x(5, 2), 2)],
    "split_with_sizes_copy": [call(x(5, 2), (2, 3))],
    "squeeze_copy": [call(x(3, 1, 1)), call(x(3, 1, 1), 1)],
    "t_copy": [call(x(3, 4))],
    "transpose_copy": [call(x(3, 4), 0, 1)],
    "unbind_copy": [call(x(3, 4), 1)],
    "unfold_copy": [call(x(5), 0, 3, 1)],
    "unsafe_chunk": [call(x(5, 2), 2)],
    "unsafe_split": [call(x(5, 2), 2)],
    "unsafe_split_with_sizes": [call(x(5, 2), (2, 3))],
    "unsqueeze_copy": [call(x(3), 0)],
    "view_copy": [call(x(3, 4), (2, 6))],
}
