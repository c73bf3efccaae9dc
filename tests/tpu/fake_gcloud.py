"""A stand-in for gcloud: writes down its arguments and answers as a test has scripted.

The folder FAKE_GCLOUD holds answers.json, {pattern: [answers]}. The first pattern that is found in
the arguments counts; its answers are used up in turn, and the last stays. An answer is what gcloud
prints, or {"out", "error", "code", "then"}, where `then` replaces entries of answers.json.
"""

import json
import os
import pathlib
import re
import sys


def main():
  folder = pathlib.Path(os.environ['FAKE_GCLOUD'])
  with (folder / 'calls.jsonl').open('a') as calls:
    calls.write(json.dumps(sys.argv[1:]) + '\n')
  path = folder / 'answers.json'
  answers = json.loads(path.read_text())
  call = ' '.join(sys.argv[1:])
  queue = next((queue for pattern, queue in answers.items() if re.search(pattern, call)), [''])
  answer = queue.pop(0) if len(queue) > 1 else queue[0]
  answer = {'out': answer} if isinstance(answer, str) else answer
  path.write_text(json.dumps(answers | answer.get('then', {})))
  print(answer.get('out', ''))
  print(answer.get('error', ''), file=sys.stderr)
  sys.exit(answer.get('code', 0))


if __name__ == '__main__':
  main()
