/** What `qproducer` may be told. */

import type { Command } from 'commander'
import type { ColorWhen } from './color.ts'
import { addOptions, makeColorOption, makeCommand } from './command.ts'
import type { OptionRow } from './option-table.ts'

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

export const OPTIONS: readonly OptionRow[] = [
  { flags: '-c, --config <file>', description: 'rc file (YAML)' },
  { flags: '-a, --algorithm <type>', description: 'algorithm that runs the job' },
  { flags: '-p, --payload <payload>', description: 'payload: JSON, plain text, @file, or - for stdin' },
  { flags: '-v, --verbose', description: 'tell more' },
  { flags: '--priority <n>', description: '0 is most urgent (PRIORITY)' },
  { flags: '--delay <duration>', description: 'time before the job may start (DELAY)' },
  { flags: '--ttr <duration>', description: 'time to run, at least 1 s (TTR)' },
  { flags: '--tube <name>', description: 'tube to put into (TUBE)' },
  { flags: '--uuid <hex>', description: '32 lower-case hexadecimal digits (default: a new one)' },
  {
    flags: '--max-attempts <n>',
    description: "tries before the job is buried (default: the worker's MAX_ATTEMPTS)",
  },
  { flags: '--tag <key=value>', description: 'label of the job; may be given more than once', isList: true },
  { flags: '--batch <file>', description: 'a job for each line of this file, or of stdin with -' },
  {
    flags: '--max-ready <n>',
    description: 'with --batch: keep at most so many jobs waiting in the tube, and go on where it stopped',
  },
  {
    flags: '--state <file>',
    description: 'with --batch: note here where to go on (with --max-ready default: FILE.feed)',
  },
  { flags: '--anew', description: 'with --max-ready or --state: begin again with the first line, with new uuids' },
  { flags: '--wait', description: 'follow the job to its end and print its result' },
  { flags: '--timeout <duration>', description: 'with --wait: wait no longer than this' },
  { flags: '--json', description: 'print one JSON object (with --batch: one for each job, then the account)' },
]

export function makeProgram(): Command {
  const command = makeCommand(PRODUCER).description(
    'Puts jobs into the queue: takes a payload, makes a work package, prints where its result will be.',
  )
  return addOptions(command, OPTIONS).addOption(makeColorOption()).addHelpText('after', EXAMPLES)
}
