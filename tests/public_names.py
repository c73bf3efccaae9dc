"""Lists the public names of nlx; `python -m tests.public_names` writes them to public_names.txt."""

import pathlib

from docs import reference

PATH = pathlib.Path(__file__).with_name('public_names.txt')


if __name__ == '__main__':
  names = sorted(reference.public_names())
  PATH.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
