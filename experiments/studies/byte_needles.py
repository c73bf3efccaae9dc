"""Needles in English, byte by byte, in texts up to eight times as long as those of training."""

from experiments.studies import Found, needles, short_run

TITLE = 'Needles in English, byte by byte'
CAPTION = (
  'The three tasks of RULER with one needle, in its words, one token for each byte, see '
  '`nlx.evaluation.byte_code`. Models, their size, numbers, uuids and `recall` are those of '
  '"Needles in longer texts than those of training"; what is about the needle is 400 of 512 bytes. '
  'Every model was trained on a mixture of the tasks in texts of 512 bytes, 1,500 steps of 8 texts '
  'with a cosine, the bytes of the answer with weight 1, all others with 0.01. Essays are English '
  'documentation, those of tests from its last tenth, which no model was trained on. All were '
  'trained at one learning rate, three seeds each; the best of six looks is chosen as there. The '
  'window is of 128 bytes, and the MLPs of HOPE-Attention learn in context every 64. In the '
  'figure: means over tasks.'
)
MODELS = {
  'HOPE-Attention, 1 level': ('hope_attention', tuple(short_run.levels(64).items())),
  'HOPE': ('hope', ()),
  'Titans': ('titans', ()),
  'Gated DeltaNet': ('gated_deltanet', ()),
  'sliding window': ('transformer', (('window', 128),)),
  'Transformer++': ('transformer', ()),
}
READING = needles.Reading(
  code='bytes',
  tasks=('single_1', 'single_2', 'single_3'),
  steps=1500,
  batch_size=8,
  text_weight=0.01,
  texts=((512, 100), (1024, 100), (2048, 50), (4096, 50)),
)
FULL = needles.Sizes(MODELS, rates=(3e-3,), reading=READING)
SMOKE = needles.Sizes(
  {'sliding window': MODELS['sliding window']},
  (1e-3,),
  (0,),
  reading=READING._replace(steps=2, batch_size=3, looks=1, texts=((512, 2), (640, 2))),
  processes=1,
)


def run(sizes: needles.Sizes) -> Found:
  """Returns a row for each model, task and length."""
  return needles.compare('byte_needles', sizes)
