/** `qworker` as a daemon: all parts put together, run, and closed in order. */

import { hostname } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { BrokerError } from '../broker/broker-error.ts'
import {
  algorithmEnvironment,
  type Config,
  ConfigError,
  describeConfig,
  serviceEnvironment,
  terminalEnvironment,
  WORKER_KEYS,
} from '../config.ts'
import { type ResultServer, startResultServer } from '../http/server.ts'
import { startOutbox } from '../outbox.ts'
import type { Stores } from '../publish.ts'
import { type Bus, makeBus } from '../report/events.ts'
import { makeLog, type Tone } from '../report/log.ts'
import type { Catalogue } from '../run/algorithm.ts'
import { openGroups } from '../run/cgroup.ts'
import { type Delegation, divideOwnGroup } from '../run/delegation.ts'
import { startGuard } from '../run/guard.ts'
import { isPresent, makeBrief, ownPresence } from '../run/presence.ts'
import { WORK_FOLDER } from '../run/workdir.ts'
import { emptyDeadWorkshops, openWorkshop } from '../run/workshop.ts'
import { openLocalStore, openS3Store, type Publisher } from '../store/store.ts'
import { openTracker, type Tracker, TrackerError } from '../tracker/tracker.ts'
import { makeRecovery } from '../worker/recovery.ts'
import { startWorker, type Worker } from '../worker/worker.ts'
import { brokerAddress, isEmbedded } from './broker.ts'
import { decideColors, paint } from './color.ts'
import { type EarlySignals, STOP_SIGNALS } from './early-signals.ts'
import { describeBrokerError, type EmbeddedBroker, exitCodeOf, openEmbeddedBroker } from './embedded.ts'
import { complain, EXIT, endProgram, endWithError, writeOut } from './exit.ts'
import { type LogOutput, openLogOutput } from './log-output.ts'
import { type Notifier, openNotifier } from './notify.ts'
import {
  directoryOf,
  makeSettings,
  readAlgorithms,
  readConfig,
  reload,
  STOP_MARGIN_SECONDS,
  s3OptionsOf,
  slotsOf,
  trackerUrl,
  type WorkerFlags,
} from './settings.ts'
import { checkMachine, findProblems, type Problem, portAdvice, shareFiles } from './startup.ts'

const NAME = 'qworker'
const OUTBOX_GRACE_MS = 5_000

/** From the configuration to the end of the process. */
export async function runWorker(flags: WorkerFlags, early: EarlySignals): Promise<void> {
  // A reload that comes while we start finds all fresh; by default it would end us. USR1 would open a debugger's port.
  for (const signal of ['SIGHUP', 'SIGUSR1'] as const) process.on(signal, () => undefined)
  decideColors(flags.color, terminalEnvironment())
  const config = await readConfigOrEnd(flags)
  // Before anything lasting is started, and before the limits of algorithms are divided.
  const cgroup = await divideOwnGroup()
  const catalogue = await readAlgorithms(config, controllersOf(cgroup))
  const presence = ownPresence()
  const publisher = {
    identity: makeBrief(presence) ?? presence,
    stateOf: isPresent,
    staging: undefined as string | undefined,
  }
  const stores = await openStores(config, publisher)
  let { problems, tracker } = await lookAround(config, stores, catalogue)
  // The disk may be full of what runs of a dead worker left: nobody else would take it away. Where that cannot be read,
  // as when another user was the worker, the problems tell it.
  if (
    problems.some(({ exitCode }) => exitCode === EXIT.cantCreate) &&
    (await emptyDeadWorkshops(workBaseOf(config)).catch(() => 0)) > 0
  ) {
    await tracker?.close()
    ;({ problems, tracker } = await lookAround(config, stores, catalogue))
  }
  const mayWait = tracker !== undefined && (await tracker.outbox.state()).length > 0
  if (tracker === undefined || problems.some(({ isOutage }) => !(isOutage && mayWait))) {
    if ('path' in cgroup) cgroup.giveBack()
    return endWithProblems(problems)
  }

  const bus = makeBus((error) => complain(NAME, `log: ${String(error)}`))
  const log = openLogOutput()
  bus.subscribe(makeLog(logOptions(config, flags, log)))
  if (flags.verbose && logFormat(config) === 'text') {
    await writeOut(`Using this configuration:\n${describeConfig(config, WORKER_KEYS)}---\n`)
    await writeOut(`Starting worker, connecting to ${brokerAddress(config)}\n`)
  }
  for (const problem of [...catalogue.problems, ...catalogue.broken.values()])
    bus.emit({ event: 'algorithm_problem', problem })
  for (const { message } of problems) bus.emit({ event: 'worker_problem', problem: message })
  const setStaging = (folder: string) => {
    publisher.staging = folder
  }
  const broker = isEmbedded(config) ? await openBrokerOrEnd(config, flags, bus, cgroup) : undefined
  await serve(config, flags, { broker, catalogue, stores, tracker, bus, cgroup, log, setStaging, early })
}

function controllersOf(cgroup: Parts['cgroup']): readonly string[] {
  return 'path' in cgroup ? cgroup.controllers : []
}

/** What the log says of it. */
function describeCgroup(cgroup: Parts['cgroup']): { controllers: readonly string[] | null; why: string | null } {
  return 'path' in cgroup ? { controllers: cgroup.controllers, why: null } : { controllers: null, why: cgroup.why }
}

interface Parts {
  /** undefined: it is somewhere else */
  readonly broker: EmbeddedBroker | undefined
  readonly catalogue: Catalogue
  readonly stores: Stores
  readonly tracker: Tracker
  readonly bus: Bus
  readonly log: LogOutput
  readonly cgroup: Delegation | { readonly why: string }
  /** Where the local store may prepare what it publishes. */
  readonly setStaging: (folder: string) => void
  readonly early: EarlySignals
}

async function serve(config: Config, flags: WorkerFlags, parts: Parts): Promise<void> {
  const { bus, stores, tracker, catalogue, cgroup, early } = parts
  early.hold(flags.once ? EXIT.failed : EXIT.ok)
  const name = `${hostname()}.${process.pid}`
  // The HTTP server comes first: once a job is taken, its status can be asked for.
  let worker: Worker | undefined
  const settings = makeSettings(config, flags, catalogue)
  const files = shareFiles(settings.slots, roleOf(config), undefined, settings.servers.length)
  const server = await startHttp(config, parts, files.http, () => worker)
  const onProblem = (problem: string) => bus.emit({ event: 'worker_problem', problem })
  const notifier = openNotifier({ service: serviceEnvironment(), onProblem })
  const workBase = workBaseOf(config)
  const groups = 'path' in cgroup ? openGroups(cgroup.path, onProblem) : undefined
  const workshop = await openWorkshop(workBase, name, undefined, groups?.base).catch((error: Error) =>
    endWithError(NAME, EXIT.cantCreate, `no folder for runs can be made in ${workBase}: ${error.message}`),
  )
  parts.setStaging(workshop.path)
  const guard = startGuard({ workshop, program: fileURLToPath(new URL('./guard.js', import.meta.url)), onProblem })
  const recovery = makeRecovery({ tracker, stores, workBase, workerId: workshop.id, bus })
  await recovery.recoverAll()
  if ('path' in cgroup) await cgroup.sweep()
  const outbox =
    stores.s3 === undefined
      ? undefined
      : startOutbox({ tracker, stores, bus, owner: workshop.id, stateOf: recovery.stateOf })
  // A signal that came meanwhile: nothing is taken, all is closed.
  if (early.signal === undefined) {
    worker = startWorker({
      ...settings,
      name,
      workerId: workshop.id,
      workshop: workshop.path,
      once: flags.once ?? false,
      ...{ stores, tracker, recovery, outbox, bus, groups },
      // Anybody may read it: the reason may name what is none of theirs.
      cgroup: { controllers: describeCgroup(cgroup).controllers },
      environment: algorithmEnvironment(),
      directoryOf: (uuid) => directoryOf(config, uuid),
      probe: () => probe(config, stores, tracker),
      onAlive: () => notifier.feed(),
    })
    handleSignals(config, flags, worker, parts, notifier)
    early.release()
    tellReady(config, worker, parts, server)
    notifier.ready()
    await worker.done
  }
  // Others that stand by take over while the rest is done here.
  await parts.broker?.close()
  await server?.close()
  await outbox?.stop(OUTBOX_GRACE_MS)
  await workshop.close()
  await guard.stop()
  await Promise.all([stores.local.close(), stores.s3?.close(), tracker.close(), notifier.close()])
  if ('path' in cgroup) cgroup.giveBack()
  await parts.log.flush()
  await endProgram(NAME, flags.once && worker?.lastSettlement()?.action !== 'delete' ? EXIT.failed : EXIT.ok)
}

function tellReady(
  config: Config,
  worker: Worker,
  { catalogue, bus, cgroup }: Parts,
  server: ResultServer | undefined,
): void {
  bus.emit({ event: 'worker_cgroup', ...describeCgroup(cgroup) })
  const host = server?.host.includes(':') ? `[${server.host}]` : server?.host
  bus.emit({
    event: 'worker_ready',
    worker: `${hostname()}.${process.pid}`,
    slots: worker.slots().length,
    tubes: config.TUBES,
    broker: brokerAddress(config),
    algorithms: [...catalogue.algorithms.keys()].sort(),
    http: server === undefined ? null : `http://${host}:${server.port}/`,
  })
}

async function openBrokerOrEnd(
  config: Config,
  flags: WorkerFlags,
  bus: Bus,
  cgroup: Parts['cgroup'],
): Promise<EmbeddedBroker> {
  try {
    const slots = flags.once ? 1 : slotsOf(config)
    return await openEmbeddedBroker(config, bus, shareFiles(slots, roleOf(config)).broker)
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    if ('path' in cgroup) cgroup.giveBack()
    return endWithError(NAME, exitCodeOf(error), describeBrokerError(config, error))
  }
}

function roleOf(config: Config): 'http' | 'both' {
  return isEmbedded(config) ? 'both' : 'http'
}

async function lookAround(config: Config, stores: Stores, catalogue: Catalogue) {
  const problems = await findProblems(config, stores, catalogue)
  const tracker = await openTrackerOrTell(config, problems)
  return { problems, tracker }
}

function workBaseOf(config: Config): string {
  return join(config.RESULT_BASEDIR, WORK_FOLDER)
}

/** What keeps this machine from doing its part just now. Room that dead workers take is made free for the next look. */
async function probe(config: Config, stores: Stores, tracker: Tracker): Promise<string[]> {
  const problems = await checkMachine(stores, tracker)
  if (problems.length > 0) await emptyDeadWorkshops(workBaseOf(config)).catch(() => undefined)
  return problems
}

/** What is wrong with it is added to `problems`. Where the folder itself has one, the tracker in it is not looked at. */
async function openTrackerOrTell(config: Config, problems: Problem[]): Promise<Tracker | undefined> {
  if (problems.some(({ exitCode }) => exitCode === EXIT.cantCreate)) return undefined
  try {
    return await openTracker(trackerUrl(config))
  } catch (error) {
    if (!(error instanceof TrackerError)) throw error
    problems.push({ exitCode: EXIT.cantCreate, message: error.message })
    return undefined
  }
}

function startHttp(
  config: Config,
  { broker, stores, bus }: Parts,
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
    health: () => ({ ...(worker()?.health() ?? { status: 'starting' }), ...brokerHealth(broker) }),
    onError: (error) =>
      bus.emit({ event: 'http_failed', error: error instanceof Error ? error.message : String(error) }),
  }).catch((error: NodeJS.ErrnoException) => endWithError(NAME, EXIT.unavailable, portAdvice(config, error)))
}

function brokerHealth(broker: EmbeddedBroker | undefined): object {
  const stats = broker?.stats()
  if (stats === undefined) return {}
  const { ready, reserved, delayed, buried, isDraining } = stats
  return { broker: { ready, reserved, delayed, buried, draining: isDraining } }
}

function handleSignals(config: Config, flags: WorkerFlags, worker: Worker, parts: Parts, notifier: Notifier): void {
  const { bus } = parts
  const controllers = controllersOf(parts.cgroup)
  let current = config
  let reloading = Promise.resolve()
  let stops = 0
  const stop = (signal: string) => {
    notifier.stopping(current.DRAIN_TIME + STOP_MARGIN_SECONDS)
    if (++stops === 1) worker.drain(signal)
    else worker.interrupt(signal)
  }
  for (const signal of STOP_SIGNALS) process.on(signal, stop)
  process.on('SIGTSTP', (signal) => worker.quiet(signal))
  process.on('SIGCONT', (signal) => worker.resume(signal))
  process.on('SIGTTIN', () => {
    for (const report of worker.slots()) bus.emit({ event: 'slot_state', ...report })
  })
  // beanstalkd's own signal; without a broker here it means nothing, and no debugger starts either.
  process.on('SIGUSR1', () => parts.broker?.drain())
  process.on('SIGHUP', () => {
    // One after the other: two that overlap could leave the older one in force.
    reloading = reloading.then(async () => {
      notifier.reloading()
      current = await reload(current, flags, { worker, bus, controllers }).catch((error: unknown) => {
        // Where descriptors are short, reading may fail in ways of its own. The next reload finds better times.
        bus.emit({ event: 'config_refused', problems: [error instanceof Error ? error.message : String(error)] })
        return current
      })
      notifier.ready()
    })
  })
}

function readConfigOrEnd(flags: WorkerFlags): Promise<Config> {
  return readConfig(flags).catch((error: unknown) => {
    if (!(error instanceof ConfigError)) throw error
    const exitCode = error.code === 'missing_file' || error.code === 'unreadable_file' ? EXIT.noInput : EXIT.config
    return endWithProblems(error.problems.map((message) => ({ exitCode, message })))
  })
}

async function openStores(config: Config, publisher: Publisher): Promise<Stores> {
  const local = await openLocalStore(config.RESULT_BASEDIR, publisher)
  const s3 = s3OptionsOf(config)
  if (s3 === undefined) return { local, s3 }
  return { local, s3: await openS3Store(s3) }
}

function logFormat({ LOG_FORMAT }: Config): 'text' | 'json' {
  return LOG_FORMAT === 'auto' ? (process.stdout.isTTY ? 'text' : 'json') : LOG_FORMAT
}

function paintOut(tone: Tone, text: string): string {
  return paint('stdout', tone, text)
}

function logOptions(config: Config, flags: WorkerFlags, log: LogOutput): Parameters<typeof makeLog>[0] {
  const rest = { level: config.LOG_LEVEL, verbose: flags.verbose ?? false, paint: paintOut }
  return { format: logFormat(config), write: (text) => log.write(text), isFile: log.isFile, ...rest }
}

function endWithProblems(problems: readonly Problem[]): never {
  for (const { message } of problems) complain(NAME, message)
  if (problems.length > 1) complain(NAME, `${problems.length} problems; nothing was started`)
  process.exit(problems[0]?.exitCode ?? EXIT.config)
}
