/** What `qproducer` may be told. */

import type { Command } from 'commander'
import type { ColorWhen } from './color.ts'
import { makeColorOption, makeCommand } from './command.ts'

export const PRODUCER = 'qproducer'

export interface ProducerFlags {
  config?: string
  algorithm?: string
  payload?: string
  verbose?: boolean
  priority?: string
  delay?: string
  ttr?: string
  tube?: string
  uuid?: string
  maxAttempts?: string
  tag?: string[]
  batch?: string
  maxReady?: string
  state?: string
  anew?: boolean
  wait?: boolean
  timeout?: string
  json?: boolean
  color?: ColorWhen
}

const EXAMPLES = `
PAYLOAD is a JSON object or list ('{"days": 7}'), @FILE, - for stdin, or text, sent as {"payload": text}. Default {}.
Durations are seconds, or have a unit: 90, 90s, 5m, 2h, 1d.
Each line of a batch is a payload, or a whole work package [{"uuid": ..., "type": ...}, payload].

Examples:
  qproducer -a sleep -p '{"seconds": 3}'
  qproducer -a forecast -p '{"sample": "co2", "holdout": 24}' --ttr 10m --wait > forecast.json
  qproducer -a forecast -p @series.json --tag season=winter
  seq 3 | sed 's/.*/{"seconds": &}/' | qproducer -a sleep --batch - --json
  qproducer -a sleep --batch millions.ndjson --max-ready 10000

With --wait stdout has the result document only, and the exit code is that of the job: 0 complete, the last attempt's
own code, 128 + signal, 124 when its time (or --timeout) was over. Other codes: 64 usage, 65 bad input, 66 no such file,
69 broker or result not reachable, 73 state file cannot be written, 74 cannot write, 75 another feed has the state file,
78 bad configuration, 130 interrupted.`

export function makeProgram(): Command {
  return makeCommand(PRODUCER)
    .description('Puts jobs into the queue: takes a payload, makes a work package, prints where its result will be.')
    .option('-c, --config <file>', 'rc file (YAML)')
    .option('-a, --algorithm <type>', 'algorithm that runs the job')
    .option('-p, --payload <payload>', 'payload: JSON, plain text, @file, or - for stdin')
    .option('-v, --verbose', 'tell more')
    .option('--priority <n>', '0 is most urgent (PRIORITY)')
    .option('--delay <duration>', 'time before the job may start (DELAY)')
    .option('--ttr <duration>', 'time to run, at least 1 s (TTR)')
    .option('--tube <name>', 'tube to put into (TUBE)')
    .option('--uuid <hex>', '32 lower-case hexadecimal digits (default: a new one)')
    .option('--max-attempts <n>', "tries before the job is buried (default: the worker's MAX_ATTEMPTS)")
    .option(
      '--tag <key=value>',
      'label of the job; may be given more than once',
      (tag: string, tags: string[] = []) => [...tags, tag],
    )
    .option('--batch <file>', 'a job for each line of this file, or of stdin with -')
    .option(
      '--max-ready <n>',
      'with --batch: keep at most so many jobs waiting in the tube, and go on where it stopped',
    )
    .option('--state <file>', 'with --batch: note here where to go on (with --max-ready default: FILE.feed)')
    .option('--anew', 'with --max-ready or --state: begin again with the first line, with new uuids')
    .option('--wait', 'follow the job to its end and print its result')
    .option('--timeout <duration>', 'with --wait: wait no longer than this')
    .option('--json', 'print one JSON object (with --batch: one for each job, then the account)')
    .addOption(makeColorOption())
    .addHelpText('after', EXAMPLES)
}
