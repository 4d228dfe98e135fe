/** `drunken-sailor torture`: breaks a deployment in every way it knows, and counts what was lost. */

import { randomInt } from 'node:crypto'
import { join } from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import {
  algorithmEnvironment,
  type Config,
  ConfigError,
  type ConfigKey,
  DEFAULTS,
  loadConfig,
  WORKER_KEYS,
} from '../config.ts'
import { BROKER_KINDS, type BrokerKind } from '../sailor/torture/broker.ts'
import type { World } from '../sailor/torture/rig.ts'
import { makeProgressLine, makeVerdictText } from '../sailor/torture/text.ts'
import { type TortureEnd, type TortureOptions, torture } from '../sailor/torture/torture.ts'
import { isSeed } from '../sailor/voyage.ts'
import { serversOf } from './broker.ts'
import { makeCommand, parseCommandLine } from './command.ts'
import { complain, EXIT, endWithError, writeOut } from './exit.ts'
import { s3OptionsOf } from './settings.ts'

const NAME = 'drunken-sailor torture'

interface Flags {
  readonly config?: string
  readonly private?: boolean
  readonly minutes: number
  readonly seed?: number
  readonly jobsPerSecond: number
  readonly workers: number
  readonly json?: boolean
  readonly keep?: boolean
  readonly broker?: BrokerKind
}

const DEFAULT_MINUTES = 1
const DEFAULT_RATE = 3
const DEFAULT_WORKERS = 2

/** What a worker of a private torture gets; quick, so that much happens in little time. */
const PRIVATE_SETTINGS: Partial<Record<ConfigKey | 'S3_PATIENCE', unknown>> = {
  CONCURRENCY: 3,
  GRACE_TIME: 1,
  DRAIN_TIME: 3,
  MAX_ATTEMPTS: 4,
  RETRY_DELAY: 1,
  RETRY_DELAY_MAX: 4,
  MAX_OUTPUT: '256KiB',
  MAX_SCRATCH: '16MiB',
  S3_PATIENCE: 5,
}

function makeNumberParser(expected: string, holds: (value: number) => boolean) {
  return (text: string) => {
    if (!/^\d+(\.\d+)?$/.test(text) || !holds(Number(text))) throw new InvalidArgumentError(`Expected ${expected}.`)
    return Number(text)
  }
}

const parseSeed = makeNumberParser('a whole number from 0 on', isSeed)
const parseMinutes = makeNumberParser('minutes, more than 0, at most 1440', (n) => n > 0 && n <= 1440)
const parseRate = makeNumberParser('jobs, more than 0, at most 100', (n) => n > 0 && n <= 100)
const parseWorkers = makeNumberParser('a whole number from 1 to 16', (n) => Number.isInteger(n) && n >= 1 && n <= 16)

export function makeProgram(): Command {
  return makeCommand(NAME)
    .description(
      'Puts jobs of all mischiefs, breaks what it can meanwhile, and compares at the end what producers were told with what the queue, the disk and S3 hold.',
    )
    .option(
      '-c, --config <file>',
      "rc file of the deployment; without --private it is the deployment's broker and bucket",
    )
    .option('--private', 'in a world of its own: broker, workers, disk and S3 stand-in, all gone afterwards')
    .addOption(
      new Option('--broker <kind>', 'of the private world (default: beanstalkd, if it is in PATH)').choices(
        BROKER_KINDS,
      ),
    )
    .option('--minutes <m>', 'how long', parseMinutes, DEFAULT_MINUTES)
    .option('--seed <n>', 'same seed, same jobs and same faults (default: a new one)', parseSeed)
    .option('--jobs-per-second <r>', 'jobs put, at most', parseRate, DEFAULT_RATE)
    .option('--workers <n>', 'workers to start and to torture', parseWorkers, DEFAULT_WORKERS)
    .option('--json', 'print one JSON object')
    .option('--keep', 'leave its folders, logs and documents there to look at')
    .addHelpText(
      'after',
      `
Beside a deployment it starts workers of its own on a tube of its own, and disturbs only them and their roads to
the broker and to S3. With --private it also kills the broker and fills the disk (where it may mount a small one).

Exits with 0 when the verdict is clean, else 1; 69 when it cannot start.

Examples:
  drunken-sailor torture --private --minutes 20 --seed 7
  drunken-sailor torture -c etc/qworkerrc --minutes 5`,
    )
}

/** @param args what follows the word torture; resolves to the exit code */
export async function run(args: readonly string[]): Promise<number> {
  const flags = await parseCommandLine<Flags>(makeProgram(), args)
  if (process.platform !== 'linux')
    return refuse(EXIT.unavailable, 'it looks at processes through /proc: it needs Linux')
  if (!flags.private && flags.config === undefined)
    return refuse(EXIT.usage, 'name a deployment with -c FILE, or give --private')
  const config = await readConfig(flags)
  const servers = serversOf(config)
  if (!flags.private && servers.length > 1) {
    const remedy = `choose one of them, as in BEANSTALK_SERVER=${servers[0].name} ${NAME} ...`
    return refuse(EXIT.usage, `it tortures one broker, and BEANSTALK_SERVER names ${servers.length}; ${remedy}`)
  }
  const seed = flags.seed ?? randomInt(2 ** 32)
  const interruption = listenForInterruption()
  const end = await torture(makeOptions(flags, config, seed, interruption.signal))
  return tellEnd(end, flags)
}

function makeOptions(flags: Flags, config: Config, seed: number, signal: AbortSignal): TortureOptions {
  const settings = flags.private ? privateSettings() : settingsOf(config)
  return {
    world: flags.private ? { kind: 'private', broker: flags.broker } : worldOf(config),
    seed,
    minutes: flags.minutes,
    jobsPerSecond: flags.jobsPerSecond,
    workers: flags.workers,
    keep: flags.keep ?? false,
    settings,
    graceSeconds: Number(settings.GRACE_TIME),
    qworker: join(import.meta.dirname, 'qworker.js'),
    sailor: join(import.meta.dirname, 'drunken-sailor.js'),
    environment: algorithmEnvironment(),
    unset: WORKER_KEYS,
    tag: `${seed}-${randomInt(2 ** 32).toString(16)}`,
    signal,
    onProgress: (progress) => process.stderr.write(makeProgressLine(progress)),
  }
}

/** Only keys that the worker knows. */
function privateSettings(): Record<string, unknown> {
  return Object.fromEntries(Object.entries(PRIVATE_SETTINGS).filter(([key]) => Object.hasOwn(DEFAULTS, key)))
}

/** No algorithm of the torture sends mail: the password stays where it is. */
function settingsOf(config: Config): Record<string, unknown> {
  const keys = WORKER_KEYS.filter((key) => !key.startsWith('SMTP_') && config[key] !== null)
  return Object.fromEntries(keys.map((key) => [key, config[key]]))
}

function worldOf(config: Config): World {
  const [{ host, port }] = serversOf(config)
  return {
    kind: 'deployment',
    brokerHost: host,
    brokerPort: port,
    resultBaseDir: config.RESULT_BASEDIR,
    s3: s3OptionsOf(config),
  }
}

async function tellEnd(end: TortureEnd, flags: Flags): Promise<number> {
  switch (end.kind) {
    case 'report': {
      const { report } = end
      await writeOut(flags.json ? `${JSON.stringify(report)}\n` : makeVerdictText(report))
      return report.verdict.clean ? EXIT.ok : EXIT.failed
    }
    case 'not_started':
      return refuse(EXIT.unavailable, end.reason)
    case 'interrupted':
      return refuse(
        EXIT.interrupted,
        `interrupted: there is no verdict${end.kept === undefined ? '; nothing was left behind' : `; kept: ${end.kept}`}`,
      )
    default:
      return end satisfies never
  }
}

function listenForInterruption(): AbortController {
  const interruption = new AbortController()
  // Once more does no more: what was started is being ended.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => interruption.abort())
  return interruption
}

function readConfig(flags: Flags): Promise<Config> {
  return loadConfig({ file: flags.config, keys: WORKER_KEYS }).catch((error: unknown) => {
    if (!(error instanceof ConfigError)) throw error
    const isAbsent = error.code === 'missing_file' || error.code === 'unreadable_file'
    return endWithError(NAME, isAbsent ? EXIT.noInput : EXIT.config, error.problems.join('\n'))
  })
}

function refuse(exitCode: number, complaint: string): number {
  complain(NAME, complaint)
  return exitCode
}
