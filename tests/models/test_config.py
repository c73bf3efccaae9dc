"""Configurations: what they derive, and what they refuse."""

import pytest

from nlx import memories, models
from nlx.memories.attention import AttentionConfig
from tests.models import problems

HOPE = {**problems.SIZES, **problems.MEMORIES, 'cms_periods': (8, 16)}


def test_hope_has_the_width_of_the_model_in_its_blocks():
  assert models.hope(**HOPE).cms.hidden == HOPE['model_dim']


def test_hope_takes_a_width_of_its_blocks():
  assert models.hope(**HOPE, cms_hidden=40).cms.hidden == 40


def test_shares_divide_the_hidden_units_of_all_blocks():
  assert models.hope(**HOPE, cms_hidden=12, cms_shares=(1, 3)).cms.widths == (6, 18)


@pytest.mark.parametrize('shares', [(1.0,), (1.0, 0.0)])
def test_share_must_be_above_zero_for_each_block(shares):
  with pytest.raises(ValueError, match='`cms_shares` must give each of the 2 blocks a number'):
    models.hope(**HOPE, cms_shares=shares)


@pytest.mark.parametrize(('model_dim', 'hidden'), [(16, 64), (48, 128), (96, 256), (100, 288)])
def test_transformer_hidden_width_is_eight_thirds_in_multiples_of_32(model_dim, hidden):
  sizes = {**problems.SIZES, 'model_dim': model_dim}
  assert models.transformer(**sizes).cms.hidden == hidden


def test_transformer_is_attention_and_one_block_that_never_learns_in_context():
  config = models.transformer(**problems.SIZES)
  assert isinstance(config.mixer, AttentionConfig)
  assert (config.cms.periods, config.in_context_periods) == ((0,), ())


def test_config_leaves_out_blocks_that_never_learn():
  config = models.hope(**HOPE | {'cms_periods': (0, 8, 0, 16)})
  assert config.in_context_periods == (8, 16)


@pytest.mark.parametrize(
  ('name', 'periods', 'chunk'),
  [
    ('hope', (0, 16), 16),
    ('hope', (0,), 8),
    ('hope_attention', (24,), 24),
    ('hope_attention', (0,), 1),
  ],
)
def test_config_base_chunk_is_that_of_the_fastest_boundary_of_the_network(name, periods, chunk):
  options = problems.MEMORIES if name == 'hope' else {}
  config = models.FAMILIES[name](**problems.SIZES, **options, cms_periods=periods)
  assert config.base_chunk == chunk


def test_config_is_hashable_and_equal_by_value():
  assert len({models.hope(**HOPE), models.hope(**HOPE), models.hope(**HOPE, meta='first')}) == 2


def test_config_takes_lists_as_tuples():
  lists = {'cms_periods': [8, 16], 'cms_hidden': [8, 8], 'adaptive': ['k'], 'rate_bias': [0.0, 1.0]}
  tuples = {name: tuple(value) for name, value in lists.items()}
  assert hash(models.hope(**HOPE | lists)) == hash(models.hope(**HOPE | tuples))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'vocab_size': 0}, '`vocab_size` must be an integer of at least 1, got 0'),
    ({'model_dim': -8}, '`model_dim` must be an integer of at least 1, got -8'),
    ({'num_layers': 0}, '`num_layers` must be an integer of at least 1, got 0'),
    ({'num_layers': 1.5}, '`num_layers` must be an integer of at least 1, got 1.5'),
    ({'num_heads': 3}, '`model_dim` must be a multiple of `num_heads`, got 16 and 3'),
    ({'cms_hidden': -1}, '`hidden` must be an integer of at least 1, got -1'),
    ({'cms_rate': -1.0}, '`rate` must be a finite number of at least 0, got -1.0'),
    ({'cms_max_norm': 0}, '`max_norm` must be a finite number above 0, got 0'),
    ({'cms_periods': (8, 8)}, r'`periods` must differ unless 0, got \(8, 8\)'),
    ({'adaptive': ('k', 'k')}, '`adaptive` must name each role once'),
    ({'cms_periods': ()}, r'`periods` must name at least one block, .* got \(\)'),
    ({'cms_periods': (8, -16)}, r'`periods` must .* 0 or more tokens, got \(8, -16\)'),
    (
      {'cms_periods': (16, 24)},
      r'`periods\[1\]` must be a multiple of `periods\[0\]`, got 24 and 16',
    ),
    (
      {'cms_periods': (0, 16, 8)},
      r'`periods\[2\]` must be a multiple of `periods\[1\]`, got 8 and 16',
    ),
    (
      {'cms_periods': (12,)},
      r'`cms.periods\[0\]` must be a multiple of `chunk of the mixer`, got 12 and 8',
    ),
    (
      {'projection_chunk_size': 6},
      '`projection_chunk_size` must be a multiple of `chunk_size`, got 6 and 4',
    ),
    ({'chunk_size': 0}, '`chunk_size` must be an integer of at least 1, got 0'),
    ({'memory_hidden': -1}, '`memory_hidden` must be an integer of at least 0, got -1'),
    ({'remat': True}, r"`remat` must be one of \['chunks', .*'none'\], got True"),
    ({'truncate': 0}, '`truncate` must be an integer of at least 1 update, got 0'),
    ({'meta': 'second'}, r"`meta` must be one of \['detached', 'first', 'full'\], got 'second'"),
    ({'rate_gate': 'relu'}, "`rate_gate` must be one of .*'sigmoid'.*, got 'relu'"),
    ({'reads': 'late'}, r"`reads` must be one of \['chunk', 'token'\], got 'late'"),
    ({'adaptive': ('k', 'beta')}, "`adaptive` must be one of .*'eta'.*, got 'beta'"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_config_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    models.hope(**HOPE | options)


def test_config_names_a_mixer_of_another_width():
  config = models.transformer(**problems.SIZES)
  with pytest.raises(ValueError, match='`cms.model_dim` must be the `mixer.model_dim` 16, got 32'):
    problems.with_cms(config, model_dim=32)


def test_config_of_attention_has_no_chunk_to_divide():
  assert models.hope_attention(**problems.SIZES, cms_periods=(12, 24)).base_chunk == 12


def test_transformer_names_heads_that_do_not_divide():
  with pytest.raises(ValueError, match='`model_dim` must be a multiple of `num_heads`'):
    models.transformer(**problems.SIZES | {'num_heads': 3})


def test_config_refuses_attention_that_has_one_derivative_under_levels_in_context():
  half = {'dtype': 'bfloat16', 'implementation': 'cudnn'}
  with pytest.raises(ValueError, match="`implementation` of attention must be 'xla'"):
    models.hope_attention(**problems.SIZES, cms_periods=(8,), **half)
  assert models.transformer(**problems.SIZES, **half).mixer.implementation == 'cudnn'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'retention_gate': 'softplus'}, '`retention_gate` must be left out for a rule without'),
    ({'keys': 'elu'}, "`keys` of the rule delta must be of .*, got 'elu'"),
    ({'learned_start': False, 'network': memories.mlp(4)}, 'one matrix'),
    ({'conv_width': -1}, '`conv_width` must be at least 0 taps'),
    ({'mlp_hidden': 8, 'cms_hidden': 8}, 'give `mlp_hidden` or `cms_hidden`, got both'),
  ],
)
def test_deltanet_names_a_wrong_option(options, message):
  with pytest.raises(ValueError, match=message):
    models.deltanet(**problems.SIZES, **options)


def test_titans_names_a_wrong_chunk_size():
  with pytest.raises(
    ValueError, match='`chunk_size` must be an integer of at least 1 token, got 0'
  ):
    models.titans(vocab_size=8, model_dim=8, num_layers=1, num_heads=2, chunk_size=0)


def test_titans_takes_its_network_once():
  with pytest.raises(ValueError, match='give `network` or `memory_hidden`, got both'):
    models.titans(**problems.SIZES, network=memories.mlp(4), memory_hidden=4)


@pytest.mark.parametrize('name', ['deltanet', 'ttt_mlp', 'titans', 'titans_mag', 'samba'])
def test_baseline_names_a_missing_size(name):
  sizes = {key: value for key, value in problems.SIZES.items() if key != 'num_heads'}
  with pytest.raises(
    TypeError, match=f'{name}.* missing the required keyword argument `num_heads`'
  ):
    models.FAMILIES[name](**sizes)


@pytest.mark.parametrize('name', ['titans_mag', 'titans_mal', 'samba'])
def test_config_finds_fused_attention_inside_of_a_mixer(name):
  half = {'dtype': 'bfloat16', 'implementation': 'cudnn'}
  with pytest.raises(ValueError, match="`implementation` of attention must be 'xla'"):
    models.FAMILIES[name](**problems.SIZES, cms_periods=(64,), **half)


def test_hope_names_a_rule_that_does_not_fit_an_mlp():
  with pytest.raises(ValueError, match='needs a memory that is one matrix'):
    models.hope(**HOPE, rule=memories.delta_rule())


def test_with_parameters_refuses_less_than_the_least_model():
  make = lambda hidden: models.transformer(**problems.SIZES, mlp_hidden=hidden)  # noqa: E731
  least = models.count_parameters(make(8))
  assert models.with_parameters(make, least) == make(8)
  with pytest.raises(ValueError, match=f'`num_parameters` must be at least {least}, .*{least - 1}'):
    models.with_parameters(make, least - 1)


def test_with_parameters_names_a_width_that_is_not_used():
  with pytest.raises(ValueError, match='must use the width'):
    models.with_parameters(lambda hidden: models.transformer(**problems.SIZES), 10_000)


def test_config_names_an_option_that_nothing_has():
  with pytest.raises(TypeError, match='unexpected keyword argument .*chunksize'):
    models.deltanet(**problems.SIZES, chunksize=8)
