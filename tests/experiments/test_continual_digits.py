import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import continual_digits as study


def paths(tree):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize('name', ['4 blocks, 4 levels', 'ViT, 3 levels'])
def test_levels_move_once_per_period_and_all_else_at_every_step(name):
  model = study.cases()[name].model
  tx, grads = study.directions(model), jax.tree.map(np.ones_like, model.init(0))
  update, state = jax.jit(tx.update), tx.init(grads)
  moved = []
  for _ in range(16):
    updates, state = update(grads, state)
    moved.append([bool(np.any(x)) for x in jax.tree.leaves(updates)])
  for i, path in enumerate(paths(grads)):
    period = next((period for part, period in model.periods if part in path), 1)
    assert [line[i] for line in moved] == [t % period == 0 for t in range(1, 17)], path


def test_blocks_have_equal_parameters_but_for_their_norms():
  def size(*periods):
    tree = jax.eval_shape(study.chain(*periods).init, 0)
    leaves = zip(paths(tree), jax.tree.leaves(tree), strict=True)
    return sum(x.size for path, x in leaves if 'norm' not in path)

  assert len({size(*study.PERIODS[:k]) for k in (1, 2, 3, 4)}) == 1


@pytest.mark.parametrize('sequence', ['split', 'permuted'])
def test_held_out_images_are_neither_trained_on_nor_tests(sequence):
  tasks = jax.tree.map(np.asarray, study.problem(sequence, hold_out=True))
  trained = tasks.groups > 0
  held_out, tests = tasks.weights.sum(axis=1).T
  assert not (tasks.weights.sum(axis=-1) > 1).any()
  whole = study.problem(sequence, hold_out=False)
  np.testing.assert_array_equal(trained.sum(axis=1) + held_out, (whole.groups > 0).sum(axis=1))
  assert tests.sum() == {'split': 450, 'permuted': 4500}[sequence]
  for task in range(len(trained)):
    images = {x.tobytes() for x in tasks.inputs[task][trained[task]]}
    kept = tasks.test_inputs[task][tasks.weights[task, :, 0] > 0]
    assert not images & {x.tobytes() for x in kept}


def test_batches_are_of_the_task_at_hand_and_the_same_for_all_models():
  tasks = study.problem('split', hold_out=True)
  batches, _ = study.draw(tasks, 3, 0, joint=False)
  assert (batches[..., 0] == np.arange(5)[:, None, None]).all()
  assert (jnp.asarray(tasks.groups)[batches[..., 0], batches[..., 1]] > 0).all()
  np.testing.assert_array_equal(batches, study.draw(tasks, 3, 0, joint=False)[0])
  mixed, _ = study.draw(tasks, 3, 0, joint=True)
  assert len(np.unique(mixed[0, ..., 0])) == 5
