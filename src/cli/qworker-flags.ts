/** What `qworker` may be told. */

import { type Command, InvalidArgumentError } from 'commander'
import { makeColorOption, makeCommand } from './command.ts'
import { SUBCOMMANDS } from './subcommands.ts'

export const WORKER = 'qworker'

export function makeProgram(): Command {
  return makeCommand(WORKER, SUBCOMMANDS)
    .description(
      'Takes jobs from beanstalkd, runs an algorithm process for each inside its time, publishes the results.',
    )
    .option('-c, --config <file>', 'rc file (YAML); see etc/qworkerrc for all keys')
    .option('-v, --verbose', 'print each job in full (on a terminal, or with LOG_FORMAT=text)')
    .option('-j, --jobs <n>', 'jobs at a time; one connection to the broker for each (rc: CONCURRENCY)')
    .option('--tube <name>', 'take jobs from this tube; may be given several times (rc: TUBES)', collect)
    .option('--embedded', 'be the broker too, for this machine alone (rc: BEANSTALK_SERVER: embedded)')
    .option('--once', 'take one job, run it, and end: with 0 when it is complete, else with 1')
    .addOption(makeColorOption())
    .addHelpText(
      'after',
      `
Signals: TERM or INT takes no more jobs and lets running ones finish (DRAIN_TIME); once more ends them
and gives them back to the queue. TSTP takes no more jobs until CONT. HUP reads the rc file and the algorithms
again. TTIN writes what each slot is doing to the log. USR1 lets the embedded broker take no more jobs.

Examples:
  qworker -c etc/qworkerrc -v
  qworker --embedded -v
  qworker -j 4 --tube fast --tube slow
  CONCURRENCY=8 RESULT_BASEDIR=/srv/results qworker`,
    )
}

function collect(value: string, previous: string[] = []): string[] {
  if (value === '') throw new InvalidArgumentError('A tube has a name.')
  return [...previous, value]
}
