"""The matrix products of a program, and the time that they alone take."""

import collections
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Product(NamedTuple):
  """Shapes of one batched product, [n, rows, inner] @ [n, inner, columns]."""

  batch: int
  rows: int
  inner: int
  columns: int

  @property
  def operations(self) -> int:
    """Multiplications and additions."""
    return 2 * self.batch * self.rows * self.inner * self.columns


def count(function: Callable[..., Any], *args: Any) -> collections.Counter[Product]:
  """Returns how often a program does each product, those in the turns of its loops included.

  Args:
    function: What is traced.
    *args: Arguments, or their shapes.
  """
  return collections.Counter(dict(_merged(_walk(jax.make_jaxpr(function)(*args).jaxpr, 1))))


def seconds(products: collections.Counter[Product], repeats: int) -> float:
  """Returns the time of all products, each shape timed by itself, warm, with its inputs at hand."""
  return sum(times * _one(product, repeats) for product, times in products.items())


def _one(product: Product, repeats: int) -> float:
  a = jnp.ones((product.batch, product.rows, product.inner))
  b = jnp.ones((product.batch, product.inner, product.columns))
  multiply = jax.jit(jnp.matmul)
  measured = []
  for _ in range(4 * repeats + 1):
    start = time.perf_counter()
    multiply(a, b).block_until_ready()
    measured.append(time.perf_counter() - start)
  return statistics.median(measured[1:])


def _merged(found: Iterator[tuple[Product, int]]) -> dict[Product, int]:
  total: collections.Counter[Product] = collections.Counter()
  for product, times in found:
    total[product] += times
  return total


def _walk(jaxpr: Any, times: int) -> Iterator[tuple[Product, int]]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield _product(equation), times
    turns = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _walk(inner, times * turns)


def _product(equation: Any) -> Product:
  (contracted, _), (batch, _) = equation.params['dimension_numbers']
  left, right = (x.aval.shape for x in equation.invars)
  size = math.prod(left[axis] for axis in batch)
  inner = math.prod(left[axis] for axis in contracted)
  rows, columns = (math.prod(shape) // (size * inner) for shape in (left, right))
  return Product(size, rows, inner, columns)
