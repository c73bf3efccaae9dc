import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from experiments import common, language_model
from experiments.configs import lm
from nlx import cms, levels, memories, optim


def test_config_comes_back_from_its_folder(tmp_path):
  config = lm.get_config('hope-tiny')
  common.write_config(config, tmp_path)
  assert common.as_dict(common.read_config(tmp_path)) == common.as_dict(config)


def test_resume_may_change_how_long_and_how_often(tmp_path):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  config = lm.get_config('hope-tiny')
  config.training.steps = 10_000
  common.check_config(config, tmp_path)
  common.write_config(config, tmp_path)
  assert common.read_config(tmp_path).training.steps == 10_000


def test_resume_may_change_how_the_model_is_computed(tmp_path):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  config = lm.get_config('hope-tiny')
  config.model.remat = 'layers'
  common.check_config(config, tmp_path)


def test_digest_of_a_text_is_noted_in_a_configuration_of_its_own():
  config = lm.get_config('hope-tiny')
  found = language_model.with_digests(config, 'a' * 12, 'c' * 12)
  assert [config.data[name] for name in lm.NOTED] == ['', '']
  assert [found.data[name] for name in lm.NOTED] == ['a' * 12, 'c' * 12]
  assert language_model.with_digests(found, 'a' * 12, 'c' * 12) == found
  del config.data.digest  # As in a run of before.
  assert language_model.with_digests(config, 'a' * 12, '').data.digest == 'a' * 12
  with pytest.raises(
    ValueError, match="`data.digest` is 'a*', but that of 'documentation' is 'b*'"
  ):
    language_model.with_digests(found, 'b' * 12, 'c' * 12)


def test_folder_of_another_text_is_an_error(tmp_path):
  config = lm.get_config('hope-tiny')
  config.data.digest = 'a' * 12
  common.write_config(config, tmp_path)
  common.check_config(config, tmp_path)
  common.check_config(lm.get_config('hope-tiny'), tmp_path)  # Before the text is read.
  config.data.digest = 'b' * 12
  with pytest.raises(
    ValueError, match="holds another run: `data.digest` was 'a*', but is 'b*' here"
  ):
    common.check_config(config, tmp_path)


@pytest.mark.parametrize(
  ('section', 'key', 'value', 'message'),
  [
    ('model', 'num_layers', 3, '`model.num_layers` was 2, but is 3 here'),
    ('data', 'corpus', 'a.txt', "`data.corpus` was 'documentation', but is 'a.txt' here"),
    ('model', 'cms_periods', (64,), r'`model.cms_periods` was \[64, 256\], but is \[64\] here'),
  ],
)
def test_folder_of_another_run_is_an_error(tmp_path, section, key, value, message):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  config = lm.get_config('hope-tiny')
  config[section][key] = value
  with pytest.raises(ValueError, match='holds another run: ' + message):
    common.check_config(config, tmp_path)


def test_folder_of_another_model_is_an_error(tmp_path):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  with pytest.raises(ValueError, match='holds another run: `model.adaptive` was'):
    common.check_config(lm.get_config('transformer-tiny'), tmp_path)


def test_identity_of_a_model_is_its_run_its_step_and_its_parameters():
  config, params = (
    lm.get_config('hope-tiny'),
    {'a': jnp.arange(3.0), 'b': jnp.ones(2, jnp.bfloat16)},
  )
  found = common.identity(config, params, 4)
  assert found == common.identity(lm.get_config('hope-tiny'), jax.tree.map(jnp.copy, params), 4)
  others = [
    common.identity(config, params, 5),
    common.identity(lm.get_config('hope-smoke'), params, 4),
    common.identity(config, {**params, 'a': params['a'].at[2].set(7)}, 4),
    common.identity(config, {'a': params['b'], 'b': params['a']}, 4),
    common.identity(config, jax.tree.map(lambda x: x.reshape((-1, 1)), params), 4),
  ]
  assert found not in others
  assert found['data']['tokenizer'] == 'bytes' and found['step'] == 4


@pytest.mark.parametrize('name', ['corpus', 'tokenizer'])
def test_large_model_needs_a_text_and_a_tokenizer(name):
  config = lm.get_config('hope-340m')
  config.data.update(corpus='texts/*.txt', tokenizer='tokenizer.json')
  config.data[name] = ''
  with pytest.raises(ValueError, match=f'`data.{name}` must be given for hope-340m'):
    common.create(config)


def test_several_processes_without_a_coordinator_are_an_error():
  config = lm.get_config('hope-tiny')
  config.processes.count = 2
  with pytest.raises(ValueError, match='must be given together, .* got 2, 0 and None'):
    common.join(config)


def test_negative_number_of_processes_is_an_error():
  config = lm.get_config('hope-smoke')
  config.processes.count = -1
  with pytest.raises(ValueError, match='`processes.count` must be at least 0, got -1'):
    common.join(config)


def test_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no run: there is no config.json'):
    common.read_config(tmp_path)


def test_unknown_model_family_is_an_error():
  config = lm.get_config('hope-smoke')
  config.model.family = 'lstm'
  with pytest.raises(ValueError, match="`model.family` must be one of .*, got 'lstm'"):
    common.create(config)


def test_objective_of_the_memories_is_chosen_by_name():
  config = lm.get_config('hope-smoke')
  config.model.objective = 'dot_product'
  made = common.make_model_config(config.model, 256)
  assert made.mixer.objective == memories.dot_product()
  config.model.objective = 'l1'
  with pytest.raises(ValueError, match="`model.objective` must be one of .*'huber'.*, got 'l1'"):
    common.make_model_config(config.model, 256)


def test_width_of_independent_levels_is_an_error():
  config = lm.get_config('transformer-smoke')
  config.stack.periods, config.stack.hidden = (16, 32), 8
  with pytest.raises(ValueError, match="`stack.hidden` .* if `stack.form` is 'independent'.* 8"):
    common.create(config)


def test_diagnosis_keeps_the_order_of_the_levels():
  language = common.create(lm.get_config('hope-smoke'))
  tokens = jnp.zeros((1, 64), jnp.int32)
  batch = {'tokens': tokens, 'targets': tokens, 'mask': jnp.ones((1, 64))}
  sizes = common.diagnosis(language.graph)(language.params, batch)
  assert list(sizes) == [info.name for info in language.model.level_infos()]


@pytest.mark.parametrize('name', common.IN_CONTEXT_RULES)
def test_in_context_rule_has_a_finite_derivative_where_gradients_are_zero(name):
  rule = common.make_in_context_rule('model.cms_rule', name)
  level = cms.in_context_level(jnp.array([0.1]), 1, 1.0, rule)
  weights = {'up': jnp.ones((1, 1, 3, 4))}
  weights = jax.tree.map(optim.capture, weights) if rule.captures else weights

  def loss(weights, gradients):
    state = level.init(weights)
    for _ in range(2):
      state = level.update(state, levels.Weighted(gradients, jnp.ones(1)))
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(level.read(state)))

  zeros = jax.tree.map(jnp.zeros_like, weights)
  gradients = jax.jit(jax.grad(loss, (0, 1)))(weights, zeros)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_unknown_in_context_rule_is_an_error():
  with pytest.raises(ValueError, match="`stack.rule` must be one of .*'m3'.*, got 'adamw'"):
    common.make_in_context_rule('stack.rule', 'adamw')


def save_tokenizer(path, words):
  """One that marks the beginnings of words, and leaves out the first mark when it decodes."""
  pieces = tokenizers.models.Unigram([('?', 0.0), *((f'\u2581{word}', 0.0) for word in words)], 0)
  inner = tokenizers.Tokenizer(pieces)
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  inner.decoder = tokenizers.decoders.Metaspace()
  inner.save(str(path))


def test_text_that_goes_on_begins_with_its_space(tmp_path):
  save_tokenizer(tmp_path / 'tokenizer.json', ['to', 'be', 'or'])
  config = lm.get_config('transformer-smoke')
  config.data.tokenizer = str(tmp_path / 'tokenizer.json')
  language = common.create(config)
  before, after = (common.encode(language, text) for text in ('to be', 'or be'))
  assert 'to be' + common.decode(language, after) == 'to be or be'
  assert language.tokenizer.decode(before[0].tolist()) == 'to be'


@pytest.mark.parametrize('text', ['é', '数 🙂', 'a\u0301', ' x'])
def test_bytes_that_go_on_are_the_text(text):
  language = common.create(lm.get_config('transformer-smoke'))
  assert common.decode(language, common.encode(language, text)) == text


def test_tokenizer_that_has_changed_under_its_name_is_an_error(tmp_path):
  path = tmp_path / 'tokenizer.json'
  save_tokenizer(path, ['to', 'be', 'or'])
  config = lm.get_config('transformer-smoke')
  config.data.tokenizer = str(path)
  language = common.create(config)
  noted = language_model.with_digests(config, '', language.tokenizer.digest)
  common.create(noted)
  save_tokenizer(path, ['be', 'to', 'or'])
  with pytest.raises(
    ValueError, match='`data.tokenizer_digest` is .* the tokenizer is another one'
  ):
    common.create(noted)


def test_folder_of_something_else_is_an_error(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  with pytest.raises(ValueError, match="holds no run: its config.json has no 'model'"):
    common.read_config(tmp_path)
