import { availableParallelism, hostname } from 'node:os'
import { join } from 'node:path'
import { Command, CommanderError, InvalidArgumentError } from 'commander'
import {
  algorithmEnvironment,
  type Config,
  ConfigError,
  describeConfig,
  LOCAL_BASEURL,
  loadConfig,
  SHAREABLE,
  WORKER_KEYS,
} from '../config.ts'
import { type ResultServer, startResultServer } from '../http/server.ts'
import type { Stores } from '../publish.ts'
import { isTubeName, openQueue } from '../queue/queue.ts'
import { type Bus, makeBus } from '../report/events.ts'
import { makeLog } from '../report/log.ts'
import { type Algorithm, type Catalogue, findAlgorithms } from '../run/algorithm.ts'
import { openLocalStore, openS3Store } from '../store/store.ts'
import { startWorker, type Worker } from '../worker/worker.ts'
import { brokerUrl } from './broker.ts'
import { complain, EXIT, endProgram, endWithError, ignoreBrokenPipe, writeOut } from './exit.ts'
import { checkAlgorithms, findProblems, maxClients, type Problem, portAdvice } from './startup.ts'
import { VERSION } from './version.ts'

const NAME = 'qworker'
const MAX_UNREAD_BYTES = 4 * 2 ** 20

interface Flags {
  readonly config?: string
  readonly verbose?: boolean
  readonly jobs?: string
  readonly tube?: string[]
  readonly once?: boolean
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
    .option('--once', 'take one job, run it, and end: with 0 when it is complete, else with 1')
    .version(VERSION, '-V, --version')
    .addHelpText(
      'after',
      `
Signals: TERM or INT takes no more jobs and lets running ones finish (DRAIN_TIME); once more ends them
and gives them back to the queue. HUP reads the algorithms again.

Examples:
  qworker -c etc/qworkerrc -v
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
  // A reload that comes while we start finds fresh algorithms; by default it would end us.
  process.on('SIGHUP', () => undefined)
  const flags = parseFlags()
  const config = await readConfig(flags)
  const catalogue = await readAlgorithms(config)
  const stores = await openStores(config)
  const problems = await findProblems(config, stores, catalogue)
  if (problems.length > 0) return endWithProblems(problems)

  const bus = makeBus((error) => complain(NAME, `log: ${String(error)}`))
  bus.subscribe(makeLog(logOptions(config, flags)))
  if (flags.verbose && logOptions(config, flags).format === 'text') {
    await writeOut(`Using this configuration:\n${describeConfig(config, WORKER_KEYS)}---\n`)
    await writeOut(`Starting worker, connecting to ${config.BEANSTALK_SERVER}:${config.BEANSTALK_PORT}\n`)
  }
  for (const problem of [...catalogue.problems, ...catalogue.broken.values()])
    bus.emit({ event: 'algorithm_problem', problem })
  await serve(config, flags, { catalogue, stores, bus })
}

interface Parts {
  readonly catalogue: Catalogue
  readonly stores: Stores
  readonly bus: Bus
}

async function serve(config: Config, flags: Flags, parts: Parts): Promise<void> {
  const { bus, stores, catalogue } = parts
  const name = `${hostname()}.${process.pid}`
  const slots = flags.once ? 1 : config.CONCURRENCY === 'auto' ? availableParallelism() : config.CONCURRENCY
  // The HTTP server comes first: once a job is taken, its status can be asked for.
  let worker: Worker | undefined
  // Without a server of ours, and with no other address named, the folder is the only place to look.
  const servedSomewhere = config.HTTP_PORT !== 'off' || config.RESULT_BASEURL !== LOCAL_BASEURL
  const server = await startHttp(config, parts, maxClients(slots), () => worker)
  worker = startWorker({
    name,
    slots,
    once: flags.once ?? false,
    openQueue: () => openQueue(brokerUrl(config)),
    tubes: config.TUBES,
    stores,
    bus,
    workBase: join(config.RESULT_BASEDIR, '.work'),
    graceSeconds: config.GRACE_TIME,
    drainSeconds: config.DRAIN_TIME,
    maxAttempts: config.MAX_ATTEMPTS,
    retryRules: { retryDelaySeconds: config.RETRY_DELAY, retryDelayMaxSeconds: config.RETRY_DELAY_MAX },
    maxOutputBytes: config.MAX_OUTPUT,
    maxScratchBytes: config.MAX_SCRATCH,
    environment: algorithmEnvironment(),
    catalogue,
    settingsFor: (algorithm) => settingsFor(config, algorithm),
    directoryOf: (uuid) => join(config.RESULT_BASEDIR, uuid.slice(0, 2), uuid),
    urlOf: (uuid) =>
      servedSomewhere ? `${config.RESULT_BASEURL}/${uuid}` : join(config.RESULT_BASEDIR, uuid.slice(0, 2), uuid),
  })
  handleSignals(config, worker, bus)
  bus.emit({
    event: 'worker_ready',
    worker: name,
    slots,
    tubes: config.TUBES,
    broker: `${config.BEANSTALK_SERVER}:${config.BEANSTALK_PORT}`,
    algorithms: [...catalogue.algorithms.keys()].sort(),
    http:
      server === undefined
        ? null
        : `http://${server.host.includes(':') ? `[${server.host}]` : server.host}:${server.port}/`,
  })
  await worker.done
  await server?.close()
  await Promise.all([stores.local.close(), stores.s3?.close()])
  await endProgram(NAME, flags.once && worker.lastSettlement()?.action !== 'delete' ? EXIT.failed : EXIT.ok)
}

function startHttp(
  config: Config,
  { stores, bus }: Parts,
  maxConnections: number | undefined,
  worker: () => Worker | undefined,
): Promise<ResultServer | undefined> {
  if (config.HTTP_PORT === 'off') return Promise.resolve(undefined)
  return startResultServer({
    store: stores.local,
    host: config.HTTP_HOST,
    port: config.HTTP_PORT,
    ...(maxConnections === undefined ? {} : { maxConnections }),
    running: (uuid) => worker()?.running(uuid),
    health: () => worker()?.health() ?? { status: 'starting' },
    onError: (error) =>
      bus.emit({ event: 'http_failed', error: error instanceof Error ? error.message : String(error) }),
  }).catch((error: NodeJS.ErrnoException) => endWithError(NAME, EXIT.unavailable, portAdvice(config, error)))
}

function handleSignals(config: Config, worker: Worker, bus: Bus): void {
  let stops = 0
  const stop = (signal: string) => {
    if (++stops === 1) worker.drain(signal)
    else worker.interrupt(signal)
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  process.on('SIGHUP', async () => {
    const catalogue = await readAlgorithms(config)
    // As at the start: without a folder, or without any algorithm, every job would be buried as of unknown type.
    const obstacles = checkAlgorithms(config, catalogue)
    if (obstacles.length > 0) {
      for (const { message } of obstacles)
        bus.emit({ event: 'algorithm_problem', problem: `${message}; the algorithms read before stay in use` })
      return
    }
    worker.replaceAlgorithms(catalogue)
    for (const problem of [...catalogue.problems, ...catalogue.broken.values()])
      bus.emit({ event: 'algorithm_problem', problem })
    bus.emit({ event: 'algorithms_read', algorithms: [...catalogue.algorithms.keys()].sort() })
  })
}

function parseFlags(): Flags {
  const program = makeProgram()
  try {
    program.parse()
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    process.exit(error.exitCode === 0 ? EXIT.ok : EXIT.usage)
  }
  const flags = program.opts<Flags>()
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

function readConfig(flags: Flags): Promise<Config> {
  return loadConfig({
    file: flags.config,
    flags: { CONCURRENCY: flags.jobs, TUBES: flags.tube },
    keys: WORKER_KEYS,
  }).catch((error: unknown) => {
    if (!(error instanceof ConfigError)) throw error
    const exitCode = error.code === 'missing_file' || error.code === 'unreadable_file' ? EXIT.noInput : EXIT.config
    return endWithProblems(error.problems.map((message) => ({ exitCode, message })))
  })
}

function readAlgorithms(config: Config): Promise<Catalogue> {
  return findAlgorithms({ dirs: config.ALGORITHM_DIRS, path: algorithmEnvironment().PATH, shareable: SHAREABLE })
}

async function openStores(config: Config): Promise<Stores> {
  const local = await openLocalStore(config.RESULT_BASEDIR)
  if (config.S3_BUCKET === null) return { local, s3: undefined }
  const s3 = await openS3Store({
    bucket: config.S3_BUCKET,
    prefix: config.S3_PREFIX,
    ...(config.S3_ENDPOINT === null ? {} : { endpoint: config.S3_ENDPOINT }),
    region: config.S3_REGION,
    forcePathStyle: config.S3_FORCE_PATH_STYLE,
  })
  return { local, s3 }
}

/** Only what the manifest names, and only what is set. */
function settingsFor(config: Config, algorithm: Algorithm): Record<string, unknown> | undefined {
  if (algorithm.settings.length === 0) return undefined
  const all = config as unknown as Record<string, unknown>
  return Object.fromEntries(algorithm.settings.filter((key) => all[key] !== null).map((key) => [key, all[key]]))
}

/** Where nobody reads what we log, lines are dropped rather than gathered without end. */
function writeBounded(text: string): void {
  if (process.stdout.writableLength < MAX_UNREAD_BYTES) void writeOut(text)
}

function logOptions(config: Config, flags: Flags): Parameters<typeof makeLog>[0] {
  const format = config.LOG_FORMAT === 'auto' ? (process.stdout.isTTY ? 'text' : 'json') : config.LOG_FORMAT
  return { format, level: config.LOG_LEVEL, verbose: flags.verbose ?? false, write: writeBounded }
}

function endWithProblems(problems: readonly Problem[]): never {
  for (const { message } of problems) complain(NAME, message)
  if (problems.length > 1) complain(NAME, `${problems.length} problems; nothing was started`)
  process.exit(problems[0]?.exitCode ?? EXIT.config)
}

main().catch((error: unknown) => {
  complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
  process.exit(EXIT.software)
})
