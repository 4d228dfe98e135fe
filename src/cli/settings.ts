/** What of the configuration a worker can take over while it runs, and how it is read again. */

import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import {
  algorithmEnvironment,
  type Config,
  ConfigError,
  type ConfigKey,
  LOCAL_BASEURL,
  loadConfig,
  localBaseUrl,
  SHAREABLE,
  WORKER_KEYS,
} from '../config.ts'
import { openQueue } from '../queue/queue.ts'
import type { Server } from '../queue/servers.ts'
import { openNamed } from '../queue/spread.ts'
import type { Bus } from '../report/events.ts'
import { type Algorithm, type Catalogue, findAlgorithms } from '../run/algorithm.ts'
import type { S3Options } from '../store/store.ts'
import { sqliteUrl } from '../tracker/tracker.ts'
import type { QueueServer } from '../worker/servers.ts'
import type { Worker, WorkerSettings } from '../worker/worker.ts'
import { isEmbedded, serversOf } from './broker.ts'
import type { ColorWhen } from './color.ts'
import { checkAlgorithms } from './startup.ts'

export interface WorkerFlags {
  readonly config?: string
  readonly verbose?: boolean
  readonly jobs?: string
  readonly tube?: string[]
  readonly embedded?: boolean
  readonly once?: boolean
  readonly color?: ColorWhen
}

/** What only a restart changes: open files, listening ports, a client with its connections. */
const FIXED: readonly ConfigKey[] = [
  'BROKER_FSYNC',
  'BROKER_MAX_JOB',
  'RESULT_BASEDIR',
  'HTTP_HOST',
  'HTTP_PORT',
  'S3_BUCKET',
  'S3_PREFIX',
  'S3_ENDPOINT',
  'S3_REGION',
  'S3_FORCE_PATH_STYLE',
  'LOG_LEVEL',
  'LOG_FORMAT',
]
/** Where the worker is the broker, or would become it. */
const FIXED_EMBEDDED: readonly ConfigKey[] = ['BEANSTALK_SERVER', 'BEANSTALK_PORT']

/** For the end of what runs, its publication and its copies, beyond DRAIN_TIME. */
export const STOP_MARGIN_SECONDS = 25

/** @throws ConfigError */
export function readConfig(flags: WorkerFlags): Promise<Config> {
  const server = flags.embedded ? { BEANSTALK_SERVER: 'embedded' } : {}
  const fromFlags = { CONCURRENCY: flags.jobs, TUBES: flags.tube, ...server }
  return loadConfig({ file: flags.config, flags: fromFlags, keys: WORKER_KEYS })
}

/** @param controllers of cgroup v2, which hold for each run */
export function readAlgorithms(config: Config, controllers: readonly string[]): Promise<Catalogue> {
  const { PATH: path } = algorithmEnvironment()
  return findAlgorithms({ dirs: config.ALGORITHM_DIRS, path, shareable: SHAREABLE, controllers })
}

export function makeSettings(config: Config, flags: WorkerFlags, catalogue: Catalogue): WorkerSettings {
  // Without a server of ours, and with no other address named, the folder is the only place to look.
  const isServed = config.HTTP_PORT !== 'off' || config.RESULT_BASEURL !== LOCAL_BASEURL
  return {
    slots: flags.once ? 1 : slotsOf(config),
    servers: queueServersOf(config),
    tubes: config.TUBES,
    graceSeconds: config.GRACE_TIME,
    drainSeconds: config.DRAIN_TIME,
    maxAttempts: config.MAX_ATTEMPTS,
    retryRules: { retryDelaySeconds: config.RETRY_DELAY, retryDelayMaxSeconds: config.RETRY_DELAY_MAX },
    maxOutputBytes: config.MAX_OUTPUT,
    maxScratchBytes: config.MAX_SCRATCH,
    s3PatienceSeconds: config.S3_PATIENCE,
    catalogue,
    settingsFor: (algorithm) => settingsFor(config, algorithm),
    urlOf: (uuid) => (isServed ? `${config.RESULT_BASEURL}/${uuid}` : directoryOf(config, uuid)),
  }
}

/** Where there are several, a ticket names its server too: each numbers its jobs for itself. */
function queueServersOf(config: Config): readonly QueueServer[] {
  const servers = serversOf(config)
  const open = servers.length === 1 ? (server: Server) => openQueue(server.url) : openNamed
  return servers.map((server) => ({ name: server.name, open: () => open(server) }))
}

export function slotsOf({ CONCURRENCY }: Config): number {
  return CONCURRENCY === 'auto' ? availableParallelism() : CONCURRENCY
}

export function trackerUrl({ RESULT_BASEDIR }: Config): string {
  return sqliteUrl(join(RESULT_BASEDIR, '.state', 'tracker.db'))
}

/** Undefined where there is no bucket. */
export function s3OptionsOf(config: Config): S3Options | undefined {
  if (config.S3_BUCKET === null) return undefined
  return {
    bucket: config.S3_BUCKET,
    prefix: config.S3_PREFIX,
    ...(config.S3_ENDPOINT === null ? {} : { endpoint: config.S3_ENDPOINT }),
    region: config.S3_REGION,
    forcePathStyle: config.S3_FORCE_PATH_STYLE,
  }
}

export function directoryOf(config: Config, uuid: string): string {
  return join(config.RESULT_BASEDIR, uuid.slice(0, 2), uuid)
}

/** Only what the manifest names, and only what is set. */
function settingsFor(config: Config, algorithm: Algorithm): Record<string, unknown> | undefined {
  if (algorithm.settings.length === 0) return undefined
  const all = config as unknown as Record<string, unknown>
  return Object.fromEntries(algorithm.settings.filter((key) => all[key] !== null).map((key) => [key, all[key]]))
}

/**
 * Reads rc file and algorithms again. What is broken is refused as a whole, and all stays as it was.
 * @returns the configuration that holds now
 */
export async function reload(
  now: Config,
  flags: WorkerFlags,
  { worker, bus, controllers }: { worker: Worker; bus: Bus; controllers: readonly string[] },
): Promise<Config> {
  let read: Config
  try {
    read = await readConfig(flags)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    bus.emit({ event: 'config_refused', problems: error.problems })
    return now
  }
  const differs = (one: Config) => (key: ConfigKey) => JSON.stringify(one[key]) !== JSON.stringify(now[key])
  const fixed = isEmbedded(now) || isEmbedded(read) ? [...FIXED, ...FIXED_EMBEDDED] : FIXED
  const kept = Object.fromEntries(fixed.map((key) => [key, now[key]]))
  // An address that follows from the port is that of the port in use.
  const isDerived = read.RESULT_BASEURL === localBaseUrl(read.HTTP_PORT)
  const address = isDerived ? { RESULT_BASEURL: localBaseUrl(now.HTTP_PORT) } : {}
  const next = Object.freeze({ ...read, ...kept, ...address }) as Config
  const catalogue = await readAlgorithms(next, controllers)
  // As at the start: without a folder, or without any algorithm, every job would be buried as of unknown type.
  const obstacles = checkAlgorithms(next, catalogue)
  if (obstacles.length > 0) {
    for (const { message } of obstacles)
      bus.emit({ event: 'algorithm_problem', problem: `${message}; the algorithms read before stay in use` })
    return now
  }
  worker.reload(makeSettings(next, flags, catalogue))
  for (const problem of [...catalogue.problems, ...catalogue.broken.values()])
    bus.emit({ event: 'algorithm_problem', problem })
  const changed = WORKER_KEYS.filter(differs(next))
  bus.emit({ event: 'config_read', changed, needRestart: fixed.filter(differs(read)) })
  bus.emit({ event: 'algorithms_read', algorithms: [...catalogue.algorithms.keys()].sort() })
  return next
}
