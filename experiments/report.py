"""What a finished run leaves in its folder, besides checkpoints and metrics."""

import json
import pathlib
from typing import Any

import jax
import ml_collections
from matplotlib.figure import Figure

from experiments import common
from experiments.reporting import provenance
from nlx import core, levels, training


def summarise(
  result: dict[str, Any],
  config: ml_collections.ConfigDict,
  language: common.Language,
  digest: str,
) -> dict[str, Any]:
  """Returns the summary of a run: its result and what is needed to compare it with another."""
  devices = jax.devices()
  return {
    'name': config.name,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(language.params)),
    **result,
    'versions': provenance.versions(),
    'device': f'{len(devices)} x {devices[0].device_kind}',
    'corpus_digest': digest,
    'config': common.as_dict(config),
  }


def write(summary: dict[str, Any], language: common.Language, workdir: pathlib.Path) -> None:
  """Writes summary.json, samples.txt, loss.png and levels.png."""
  rows = training.read_metrics(workdir / 'metrics.jsonl')
  core.write_text(workdir / 'summary.json', json.dumps(summary, indent=2) + '\n')
  samples = [f'--- step {row["step"]}\n{row["sample"]}\n' for row in rows if 'sample' in row]
  core.write_text(workdir / 'samples.txt', '\n'.join(samples))
  _save(plot_loss(rows, summary['name']), workdir / 'loss.png')
  _save(levels.plot(language.model), workdir / 'levels.png')


def plot_loss(rows: list[dict[str, Any]], title: str) -> Figure:
  """Draws the training and validation curves, in bits per byte against steps."""
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  for name, label in (('train_bits_per_byte', 'training'), ('val_bits_per_byte', 'validation')):
    points = [(row['step'], row[name]) for row in rows if name in row]
    axes.plot(
      *zip(*points, strict=True), label=label, marker='o' if name.startswith('val') else None
    )
  axes.set(xlabel='step', ylabel='bits per byte', title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


def _save(figure: Figure, path: pathlib.Path) -> None:
  core.replace_file(path, lambda part: figure.savefig(part, format='png', dpi=150))
