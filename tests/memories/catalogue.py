"""Every rule with a network and an objective that it is used with, for tests that hold for all."""

from typing import NamedTuple

from nlx import memories
from tests.memories import problems


class Case(NamedTuple):
  """A memory without its width; `network` is a key of `problems.NETWORKS`."""

  rule: memories.Rule
  network: str
  objective: memories.Objective | None = None  # What the rule is printed with if None.

  @property
  def written_objective(self):
    """What a write lowers."""
    return self.objective or (memories.dot_product() if self.rule.transposed else memories.l2())

  def layer(self, chunk_size, width=problems.WIDTH, **kwargs):
    """The memory along a sequence."""
    network, widths = problems.NETWORKS[self.network], (width, width)
    return memories.layer(network, self.rule, chunk_size, self.objective, widths=widths, **kwargs)


CASES = {
  f'{make.__name__} {network} {momentum=} {retention=}': Case(
    make(momentum=momentum, retention=retention), network
  )
  for make in (memories.gradient, memories.dgd)
  for network in ('matrix', 'mlp')
  for momentum in (False, True)
  for retention in (False, True)
  if network == 'mlp' or (momentum and retention)
}
# Windows reach beyond chunks of 8, and some are longer.
CASES |= {
  'gradient over a span': Case(memories.gradient(momentum=True, span=8), 'mlp'),
  'hebbian': Case(memories.gradient(literal=True), 'matrix', memories.dot_product()),
  'delta': Case(memories.delta_rule(), 'matrix'),
  'delta without retention': Case(memories.delta_rule(retention=False), 'matrix'),
  'oja': Case(memories.oja(), 'matrix'),
  'oja without retention': Case(memories.oja(retention=False), 'matrix'),
  'oja literal': Case(memories.oja(literal=True), 'matrix'),
  'omega': Case(memories.omega(window=5), 'mlp'),
  'omega without momentum': Case(memories.omega(window=11, momentum=False), 'matrix'),
  'omega literal': Case(memories.omega(window=2, literal=True), 'matrix'),
  'atlas': Case(memories.omega(window=5, orthogonal=3), 'mlp'),
  'orthogonal': Case(
    memories.omega(window=1, momentum=False, retention=False, orthogonal=2), 'matrix'
  ),
  'moneta': Case(memories.gradient(mirror=memories.lq_retention(4, 0.5)), 'mlp', memories.lp(3.0)),
  'memora': Case(memories.gradient(momentum=True, mirror=memories.kl_retention()), 'matrix'),
  'yaad': Case(memories.gradient(), 'mlp', memories.huber()),
  'dgd on the dot product': Case(memories.dgd(momentum=True), 'matrix', memories.dot_product()),
  'dgd with biases': Case(memories.dgd(), 'biased'),
}
# Every cap binds at some tokens of `problems` and not at others.
CASES |= {
  'dgd under both caps': Case(memories.dgd(hard_cap=True, soft_cap=True), 'matrix'),
  'dgd literal under the hard cap': Case(
    memories.dgd(momentum=True, literal=True, hard_cap=True), 'matrix'
  ),
  'gradient under the soft cap': Case(memories.gradient(soft_cap=True), 'mlp'),
  'delta under the hard cap': Case(memories.delta_rule(hard_cap=True), 'matrix'),
  'oja literal under the hard cap': Case(memories.oja(literal=True, hard_cap=True), 'matrix'),
  'omega literal under both caps': Case(
    memories.omega(window=3, literal=True, hard_cap=True, soft_cap=True), 'matrix'
  ),
  'memora under the soft cap': Case(
    memories.gradient(mirror=memories.kl_retention(), soft_cap=True), 'matrix'
  ),
}
