import jax.numpy as jnp
import pytest

from experiments import common
from experiments.configs import lm


def test_config_comes_back_from_its_folder(tmp_path):
  config = lm.get_config('hope-tiny')
  common.write_config(config, tmp_path)
  assert common.as_dict(common.read_config(tmp_path)) == common.as_dict(config)


def test_resume_may_change_how_long_and_how_often(tmp_path):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  config = lm.get_config('hope-tiny')
  config.training.steps = 10_000
  common.write_config(config, tmp_path)
  assert common.read_config(tmp_path).training.steps == 10_000


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
    common.write_config(config, tmp_path)


def test_folder_of_another_model_is_an_error(tmp_path):
  common.write_config(lm.get_config('hope-tiny'), tmp_path)
  with pytest.raises(ValueError, match='holds another run: `model.adaptive` was'):
    common.write_config(lm.get_config('transformer-tiny'), tmp_path)


def test_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no run: there is no config.json'):
    common.read_config(tmp_path)


def test_unknown_model_family_is_an_error():
  config = lm.get_config('hope-smoke')
  config.model.family = 'lstm'
  with pytest.raises(ValueError, match="`model.family` must be one of .*, got 'lstm'"):
    common.create(config)


def test_diagnosis_keeps_the_order_of_the_levels():
  language = common.create(lm.get_config('hope-smoke'))
  tokens = jnp.zeros((1, 64), jnp.int32)
  batch = {'tokens': tokens, 'targets': tokens, 'mask': jnp.ones((1, 64))}
  sizes = common.diagnosis(language.graph)(language.params, batch)
  assert list(sizes) == [info.name for info in language.model.level_infos()]
