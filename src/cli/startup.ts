/** What a worker checks before it takes a job: everything at once, each problem with its remedy. */

import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { promisify } from 'node:util'
import { isFolderLocked } from '../broker/lock.ts'
import type { Config } from '../config.ts'
import type { Stores } from '../publish.ts'
import { openQueue, QueueError } from '../queue/queue.ts'
import type { Server } from '../queue/servers.ts'
import type { Catalogue } from '../run/algorithm.ts'
import { findDescriptorShortage } from '../run/kill.ts'
import { hasProc } from '../run/look.ts'
import type { Tracker } from '../tracker/tracker.ts'
import { brokerAdvice, isEmbedded, serversOf } from './broker.ts'
import { journalFolder } from './embedded.ts'
import { EXIT } from './exit.ts'

export interface Problem {
  readonly exitCode: number
  readonly message: string
  /** of S3: where copies wait for it, it worked before, and its outage hinders no job */
  readonly isOutage?: true
}

/** Runs all checks side by side. */
export async function findProblems(config: Config, stores: Stores, catalogue: Catalogue): Promise<Problem[]> {
  const found = await Promise.all([
    stores.local.check().then((lines) => asProblems(lines, EXIT.cantCreate)),
    stores.s3 === undefined ? [] : stores.s3.check().then(asOutages),
    checkBroker(config),
    checkHttpPort(config),
    checkProcessTools(),
    checkAlgorithms(config, catalogue),
  ])
  return found.flat()
}

/** What keeps this machine from doing its part just now, one line each. */
export async function checkMachine(stores: Stores, tracker: Tracker): Promise<string[]> {
  const found = await Promise.all([
    stores.local.check(),
    // Writes nothing, and waits for the right to write.
    tracker.outbox.giveBack('nobody').then(
      () => [],
      (error: Error) => [error.message],
    ),
  ])
  return [...found.flat(), ...checkDescriptors()]
}

/** As many as a run and its publication need at once. */
const SPARE_DESCRIPTORS = 24

function checkDescriptors(): string[] {
  const code = findDescriptorShortage(SPARE_DESCRIPTORS)
  if (code === undefined) return []
  return [`too many open files (${code}): raise the limit of this worker (ulimit -n, LimitNOFILE)`]
}

function asProblems(lines: readonly string[], exitCode: number): Problem[] {
  return lines.map((message) => ({ exitCode, message }))
}

function asOutages(lines: readonly string[]): Problem[] {
  return lines.map((message) => ({ exitCode: EXIT.unavailable, message, isOutage: true }))
}

/** Of several servers one is enough to start with: the worker looks for the others, and tells so. */
async function checkBroker(config: Config): Promise<Problem[]> {
  const found = await Promise.all(serversOf(config).map((server) => checkServer(config, server)))
  const problems = found.filter((problem) => problem !== undefined)
  return problems.length < found.length ? [] : problems
}

async function checkServer(config: Config, server: Server): Promise<Problem | undefined> {
  try {
    const queue = await openQueue(server.url)
    queue.close()
    return undefined
  } catch (error) {
    if (!(error instanceof QueueError)) throw error
    // Nothing is there, or one that reads its journal yet: it is started, or waited for, when all else is in order.
    if (isEmbedded(config) && (isRefused(error) || (await isBeingStarted(config)))) return undefined
    const message = isEmbedded(config)
      ? `${error.message}: the broker of this worker cannot listen there; set BEANSTALK_PORT to a free port`
      : `${brokerAdvice(config, error, server)}; with --embedded the worker is the broker too`
    return { exitCode: EXIT.unavailable, message }
  }
}

/** Not by listening there ourselves: of several workers that start at once one would find the port taken by this look. */
function isRefused({ cause }: QueueError): boolean {
  return (cause as NodeJS.ErrnoException | undefined)?.code === 'ECONNREFUSED'
}

function isBeingStarted(config: Config): Promise<boolean> {
  return isFolderLocked(journalFolder(config)).catch(() => false)
}

async function checkHttpPort(config: Config): Promise<Problem[]> {
  const { HTTP_PORT, HTTP_HOST } = config
  const error = HTTP_PORT === 'off' ? undefined : await findListenError(HTTP_HOST, HTTP_PORT)
  return error === undefined ? [] : [{ exitCode: EXIT.unavailable, message: portAdvice(config, error) }]
}

/** Tries to listen; the real server comes a moment later. */
export function findListenError(host: string, port: number): Promise<NodeJS.ErrnoException | undefined> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', resolve)
    server.listen({ port, host }, () => server.close(() => resolve(undefined)))
  })
}

export function portAdvice(config: Config, error: NodeJS.ErrnoException): string {
  const address = `${config.HTTP_HOST}:${config.HTTP_PORT}`
  switch (error.code) {
    case 'EADDRINUSE':
      return `HTTP_PORT: ${address} is in use by another program (perhaps another qworker); set HTTP_PORT to a free port, or to off`
    case 'EACCES':
      return `HTTP_PORT: this user may not listen on ${address}; set HTTP_PORT to a port above 1023`
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return `HTTP_HOST: ${config.HTTP_HOST} is no address of this machine; set it to 127.0.0.1, or to 0.0.0.0 for all`
    default:
      return `HTTP_PORT: cannot listen on ${address}: ${error.message}`
  }
}

/** With /proc every process of a run is found without help; elsewhere tree-kill needs `ps` (Linux) or `pgrep` (macOS). */
export async function checkProcessTools(): Promise<Problem[]> {
  if (hasProc) return []
  const tool = process.platform === 'darwin' ? 'pgrep' : 'ps'
  try {
    await promisify(execFile)(
      tool,
      tool === 'ps' ? ['-o', 'pid', '-p', String(process.pid)] : ['-P', String(process.pid)],
    )
    return []
  } catch (error) {
    // pgrep exits with 1 when it finds nothing: it is there.
    if (typeof (error as { code?: unknown }).code === 'number') return []
    return [
      {
        exitCode: EXIT.config,
        message: `program ${tool} is not in PATH, and there is no /proc: process trees could not be ended; install ${tool} (Debian: package procps)`,
      },
    ]
  }
}

/** What the process itself holds open, and what a slot may at once: its broker, streams, files that it publishes. */
const OWN_FILES = 64
const FILES_PER_SLOT = 26
const FILES_PER_FURTHER_SERVER = 1
/** A client of HTTP may have a connection and a file that is sent. */
const FILES_PER_CLIENT = 2
const MIN_CLIENTS = 8

/** What it takes to run these slots and to answer a few clients. */
export function filesNeeded(slots: number, servers: number): number {
  return OWN_FILES + filesOfSlots(slots, servers) + MIN_CLIENTS * FILES_PER_CLIENT
}

function filesOfSlots(slots: number, servers: number): number {
  return slots * (FILES_PER_SLOT + (servers - 1) * FILES_PER_FURTHER_SERVER)
}

/**
 * How many clients at a time leave the jobs their share of the files that this process may have open. HTTP and the
 * embedded broker get half of what is left each, where the process is both.
 * @param limits text of /proc/self/limits; undefined where there is none
 * @param servers that each slot has a connection to
 * @returns undefined when nothing is known
 */
export function shareFiles(
  slots: number,
  role: 'http' | 'broker' | 'both',
  limits = readLimits(),
  servers = 1,
): { http: number | undefined; broker: number | undefined } {
  const files = readLimit('open files', limits)
  if (files === undefined || files === Number.POSITIVE_INFINITY) return { http: undefined, broker: undefined }
  const left = (files - OWN_FILES - filesOfSlots(slots, servers)) / (role === 'both' ? 2 : 1)
  return {
    http: Math.max(MIN_CLIENTS, Math.floor(left / FILES_PER_CLIENT)),
    broker: Math.max(MIN_CLIENTS + slots, Math.floor(left)),
  }
}

/** The soft limit of this process, which what it starts inherits. Undefined where there is no /proc. */
export function readLimit(
  name: 'open files' | 'core file size' | 'processes',
  limits = readLimits(),
): number | undefined {
  const [, soft] = new RegExp(`^Max ${name} +(\\d+|unlimited)`, 'm').exec(limits ?? '') ?? []
  if (soft === undefined) return undefined
  return soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft)
}

function readLimits(): string | undefined {
  try {
    return readFileSync('/proc/self/limits', 'utf8')
  } catch {
    return undefined
  }
}

export function checkAlgorithms(config: Config, catalogue: Catalogue): Problem[] {
  const problems = catalogue.problems
    .filter((line) => line.startsWith('ALGORITHM_DIRS'))
    .map((message) => ({ exitCode: EXIT.config, message }))
  if (problems.length > 0 || catalogue.algorithms.size > 0) return problems
  const why = [...catalogue.broken.values()].map((line) => `; ${line}`).join('')
  return [
    {
      exitCode: EXIT.config,
      message: `ALGORITHM_DIRS: no algorithm that can be run in ${config.ALGORITHM_DIRS.join(', ')}${why}`,
    },
  ]
}
