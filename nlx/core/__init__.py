"""What knows no learning: axis letters, checks, files, pytree arithmetic, rematerialised scans.

Axis letters, used in every shape comment of this package:

====  =====================================================
B     batch: independent sequences
T     time: tokens of a sequence
C     chunk: consecutive tokens that share one state
H     heads
R     roles: memories of one layer that share keys and gates
K, V  width of a head's keys and of its values
D     model width
F     hidden width of a memory or of an MLP
L     layers
====  =====================================================
"""

from nlx.core.checks import check_above_zero, check_choice, check_divides, check_positive
from nlx.core.differences import first_difference
from nlx.core.files import (
  Mirror,
  as_path,
  find_files,
  is_remote,
  local_copy,
  make_folder,
  real_path,
  replace_file,
  write_text,
)
from nlx.core.mesh import auto_axes, constrain
from nlx.core.orthogonal import QUINTIC, Triple, matrix_norm, orthogonalize
from nlx.core.products import matmul, power
from nlx.core.scan import join_time, scan_chunks, split_time
from nlx.core.trees import (
  clip_by_norm,
  root_mean_square,
  select,
  squared_norm,
  tree_add,
  tree_size,
  tree_zeros_like,
)

__all__ = [
  'Mirror',
  'QUINTIC',
  'Triple',
  'as_path',
  'auto_axes',
  'check_above_zero',
  'check_choice',
  'check_divides',
  'check_positive',
  'clip_by_norm',
  'constrain',
  'find_files',
  'first_difference',
  'is_remote',
  'join_time',
  'local_copy',
  'make_folder',
  'matmul',
  'matrix_norm',
  'orthogonalize',
  'power',
  'real_path',
  'replace_file',
  'root_mean_square',
  'scan_chunks',
  'select',
  'split_time',
  'squared_norm',
  'tree_add',
  'tree_size',
  'tree_zeros_like',
  'write_text',
]
