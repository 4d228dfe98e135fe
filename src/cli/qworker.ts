/** The command line of `qworker`: the worker itself, and what is done around it, each loaded when it is called. */

import { Command, CommanderError, InvalidArgumentError } from 'commander'
import { isTubeName } from '../queue/queue.ts'
import { StoreError } from '../store/store.ts'
import { TrackerError } from '../tracker/tracker.ts'
import { heedEarlySignals } from './early-signals.ts'
import { complain, EXIT, endProgram, endWithError, ignoreBrokenPipe } from './exit.ts'
import type { WorkerFlags } from './settings.ts'
import { VERSION } from './version.ts'

const NAME = 'qworker'

/** Each has a command line of its own, and resolves to its exit code. */
const SUBCOMMANDS: Readonly<Record<string, () => Promise<{ run(args: readonly string[]): Promise<number> }>>> = {
  init: () => import('./init.ts'),
  check: () => import('./check.ts'),
  broker: () => import('./broker-program.ts'),
}

function makeProgram(): Command {
  return new Command(NAME)
    .description(
      'Takes jobs from beanstalkd, runs an algorithm process for each inside its time, publishes the results.',
    )
    .option('-c, --config <file>', 'rc file (YAML); see etc/qworkerrc for all keys')
    .option('-v, --verbose', 'print each job in full (on a terminal, or with LOG_FORMAT=text)')
    .option('-j, --jobs <n>', 'jobs at a time; one connection to the broker for each (rc: CONCURRENCY)')
    .option('--tube <name>', 'take jobs from this tube; may be given several times (rc: TUBES)', collect)
    .option('--embedded', 'be the broker too, for this machine alone (rc: BEANSTALK_SERVER: embedded)')
    .option('--once', 'take one job, run it, and end: with 0 when it is complete, else with 1')
    .version(VERSION, '-V, --version')
    .addHelpText(
      'after',
      `
Commands, each with --help:
  qworker init DIR       writes a small project that works, to start from
  qworker check          tells what is right and what is wrong with an installation
  qworker broker         runs the embedded broker alone

Signals: TERM or INT takes no more jobs and lets running ones finish (DRAIN_TIME); once more ends them
and gives them back to the queue. TSTP takes no more jobs until CONT. HUP reads the rc file and the algorithms
again. TTIN writes what each slot is doing to the log. USR1 lets the embedded broker take no more jobs.

Examples:
  qworker -c etc/qworkerrc -v
  qworker --embedded -v
  qworker -j 4 --tube fast --tube slow
  CONCURRENCY=8 RESULT_BASEDIR=/srv/results qworker`,
    )
    .allowExcessArguments(false)
    .configureOutput({
      outputError: (text) => complain(NAME, `${text.replace(/^error: /, '').trimEnd()}\ntry qworker --help`),
    })
    .exitOverride()
}

function collect(value: string, previous: string[] = []): string[] {
  if (value === '') throw new InvalidArgumentError('A tube has a name.')
  return [...previous, value]
}

async function main(): Promise<void> {
  ignoreBrokenPipe()
  const [name = '', ...args] = process.argv.slice(2)
  const subcommand = Object.hasOwn(SUBCOMMANDS, name) ? SUBCOMMANDS[name] : undefined
  if (subcommand !== undefined) return endProgram(NAME, await (await subcommand()).run(args))
  const early = heedEarlySignals()
  const flags = parseFlags()
  const { runWorker } = await import('./worker.ts')
  await runWorker(flags, early)
}

function parseFlags(): WorkerFlags {
  const program = makeProgram()
  try {
    program.parse()
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    process.exit(error.exitCode === 0 ? EXIT.ok : EXIT.usage)
  }
  const flags = program.opts<WorkerFlags>()
  const slots = flags.jobs === undefined || /^\d{1,3}$/.test(flags.jobs) ? Number(flags.jobs ?? 1) : 0
  if (flags.jobs !== 'auto' && (slots < 1 || slots > 256)) {
    endWithError(
      NAME,
      EXIT.usage,
      `-j takes a number of jobs from 1 to 256, or auto; it is ${JSON.stringify(flags.jobs)}`,
    )
  }
  const badTube = flags.tube?.find((name) => !isTubeName(name))
  if (badTube !== undefined) {
    const expected = '1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -'
    endWithError(NAME, EXIT.usage, `--tube takes ${expected}; it is ${JSON.stringify(badTube)}`)
  }
  if (flags.once && flags.jobs !== undefined && flags.jobs !== '1') {
    endWithError(NAME, EXIT.usage, '--once takes one job, -j several at a time: give one of them')
  }
  return flags
}

main().catch((error: unknown) => {
  // Found when nothing is begun yet: the message has the remedy.
  if (error instanceof TrackerError || error instanceof StoreError) endWithError(NAME, EXIT.cantCreate, error.message)
  complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
  process.exit(EXIT.software)
})
