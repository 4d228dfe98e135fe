/** Whom a worker talks to, and who talks to it: broker, S3, the port of its HTTP server. */

import { join } from 'node:path'
import { isFolderLocked } from '../../broker/lock.ts'
import type { Config } from '../../config.ts'
import { type BrokerDescription, describeBroker, QueueError } from '../../queue/queue.ts'
import type { Server } from '../../queue/servers.ts'
import { WORK_FOLDER } from '../../run/workdir.ts'
import { findLivingWorkers } from '../../run/workshop.ts'
import { openS3Store } from '../../store/store.ts'
import { brokerAddress, brokerAdvice, EMBEDDED_HOST, isEmbedded, serversOf } from '../broker.ts'
import { journalFolder } from '../embedded.ts'
import { EXIT } from '../exit.ts'
import { s3OptionsOf } from '../settings.ts'
import { findListenError, portAdvice } from '../startup.ts'
import { type Finding, lateMessage, makeOk, makeProblem, makeWarning, withinTime } from './finding.ts'

const BROKER = 'broker'
const S3 = 's3'
const HTTP = 'http'
/** A worker answers at once, also one that is paused. */
const HEALTH_MS = 5_000
const MAX_HEALTH_BYTES = 2 ** 20

/** Each server on its own: one that hangs keeps none of the others from being told. */
export async function checkBroker(config: Config): Promise<Finding[]> {
  const servers = serversOf(config)
  const found = servers.map((server) => {
    const what = servers.length === 1 ? 'the broker' : `the broker at ${server.name}`
    const late = `${lateMessage(what)}; see whether its disk or network hangs`
    return withinTime(checkServer(config, server), () => [makeProblem(BROKER, EXIT.unavailable, late)])
  })
  return (await Promise.all(found)).flat()
}

async function checkServer(config: Config, server: Server): Promise<Finding[]> {
  try {
    const found = tellBroker(server.name, await describeBroker(server.url))
    return isEmbedded(config) ? [...found, ...(await tellForeign(config))] : found
  } catch (error) {
    if (!(error instanceof QueueError)) throw error
    if (isEmbedded(config)) return [await checkEmbeddedPlace(config, error)]
    return [makeProblem(BROKER, EXIT.unavailable, brokerAdvice(config, error, server))]
  }
}

function tellBroker(address: string, broker: BrokerDescription): Finding[] {
  const { ready, reserved, delayed, buried } = broker.jobs
  const jobs = `jobs: ${ready} ready, ${reserved} reserved, ${delayed} delayed, ${buried} buried`
  const largest = `takes jobs up to ${broker.maxBodyBytes} bytes`
  const found = [makeOk(BROKER, `version ${broker.version} answers at ${address}, ${largest}; ${jobs}`)]
  if (!broker.isDurable) {
    const remedy = 'start it with a binlog: beanstalkd -b DIR'
    found.push(
      makeWarning(BROKER, `the broker at ${address} keeps no binlog: its jobs are lost when it ends; ${remedy}`),
    )
  }
  if (broker.isDraining) {
    const what = `the broker at ${address} drains: it takes no more jobs`
    found.push(makeWarning(BROKER, `${what}; start it again when that was not meant`))
  }
  return found
}

/** With `embedded` whoever answers at the port is the broker. */
async function tellForeign(config: Config): Promise<Finding[]> {
  const folder = journalFolder(config)
  // Where it cannot be told, nothing is.
  if (await isFolderLocked(folder).catch(() => true)) return []
  const what = `the broker at ${brokerAddress(config)} is none of this RESULT_BASEDIR, and is used all the same`
  return [makeWarning(BROKER, `${what}; if that is not meant, set BEANSTALK_PORT to a port of its own`)]
}

async function checkEmbeddedPlace(config: Config, error: QueueError): Promise<Finding> {
  const address = brokerAddress(config)
  const folder = journalFolder(config)
  if (await isFolderLocked(folder).catch(() => false)) {
    const what = `${error.message}, but a broker keeps its journal in ${folder}`
    const remedy = 'wait until it has read it; or give all workers of this RESULT_BASEDIR the same BEANSTALK_PORT'
    return makeProblem(BROKER, EXIT.unavailable, `${what}: ${remedy}`)
  }
  const listenError = await findListenError(EMBEDDED_HOST, config.BEANSTALK_PORT)
  if (listenError === undefined)
    return makeOk(BROKER, `${address} is free for the worker's own; jobs rest in ${folder}`)
  const why = listenError.code === 'EADDRINUSE' ? error.message : listenError.message
  const remedy = 'set BEANSTALK_PORT to a free port'
  return makeProblem(BROKER, EXIT.unavailable, `${address} cannot be had for the embedded broker (${why}); ${remedy}`)
}

export interface S3Findings {
  readonly findings: readonly Finding[]
  /** see Probe */
  readonly clockAheadMs: number | undefined
}

export async function checkS3(config: Config): Promise<S3Findings> {
  const options = s3OptionsOf(config)
  if (options === undefined)
    return { findings: [makeOk(S3, 'no bucket is configured: results stay on this machine')], clockAheadMs: undefined }
  const store = await openS3Store(options)
  const { problems, left, clockAheadMs } = await store.probe()
  await store.close()
  const findings = problems.map((message) => makeProblem(S3, EXIT.unavailable, message))
  if (problems.length === 0) {
    const where = `bucket ${options.bucket}, keys ${options.prefix}<uuid>/<name>`
    const removed = left === undefined ? ', and removed' : ''
    findings.push(makeOk(S3, `an object was written, read${removed} (${where})`))
  }
  if (left !== undefined) {
    const remedy = `workers remove nothing and do not need that; remove ${left.key} by hand`
    findings.push(makeWarning(S3, `${left.why}; ${remedy}`))
  }
  return { findings, clockAheadMs }
}

export function lateS3(message: string): S3Findings {
  const advice = `${message}; check S3_ENDPOINT, the network and that the server runs`
  return { findings: [makeProblem(S3, EXIT.unavailable, advice)], clockAheadMs: undefined }
}

export async function checkHttp(config: Config): Promise<Finding[]> {
  const { HTTP_PORT, HTTP_HOST } = config
  if (HTTP_PORT === 'off') return [makeOk(HTTP, 'off: this worker serves no results')]
  const address = `${HTTP_HOST}:${HTTP_PORT}`
  const error = await findListenError(HTTP_HOST, HTTP_PORT)
  if (error === undefined) return [makeOk(HTTP, HTTP_PORT === 0 ? 'any free port is taken' : `${address} is free`)]
  const health = error.code === 'EADDRINUSE' ? await askHealth(HTTP_HOST, HTTP_PORT) : undefined
  if (health === undefined) return [makeProblem(HTTP, EXIT.unavailable, portAdvice(config, error))]
  return [await tellWorker(config, address, health)]
}

interface Health {
  readonly status: string
  /** undefined of one that is just starting */
  readonly worker: string | undefined
  readonly reason: string | undefined
}

/** Undefined when what answers is no qworker. */
async function askHealth(host: string, port: number): Promise<Health | undefined> {
  const loopback: Readonly<Record<string, string>> = { '0.0.0.0': '127.0.0.1', '::': '::1' }
  const name = loopback[host] ?? host
  const url = `http://${name.includes(':') ? `[${name}]` : name}:${port}/healthz`
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(HEALTH_MS), redirect: 'error' })
    const { status, worker, reason, slots } = JSON.parse(await readText(response)) as Record<string, unknown>
    if (typeof status !== 'string' || (status !== 'starting' && typeof slots !== 'object')) return undefined
    const asText = (value: unknown) => (typeof value === 'string' ? value : undefined)
    return { status, worker: asText(worker), reason: asText(reason) }
  } catch {
    return undefined
  }
}

/** @throws RangeError for more than any worker says: what answers may have no end */
async function readText({ body }: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let length = 0
  for await (const chunk of body ?? []) {
    length += chunk.length
    if (length > MAX_HEALTH_BYTES) throw new RangeError(`more than ${MAX_HEALTH_BYTES} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

async function tellWorker(config: Config, address: string, { status, worker, reason }: Health): Promise<Finding> {
  if (worker === undefined)
    return makeWarning(HTTP, `${address} is in use by a qworker that is just starting; check again in a moment`)
  const ours = await findLivingWorkers(join(config.RESULT_BASEDIR, WORK_FOLDER))
  if (!ours.includes(worker)) {
    const what = `HTTP_PORT: ${address} is in use by worker ${worker} of another RESULT_BASEDIR`
    return makeProblem(HTTP, EXIT.unavailable, `${what}; set HTTP_PORT to a free port, or to off`)
  }
  const told = `${address} is in use by worker ${worker} of this installation, which says: ${status}`
  if (status !== 'paused') return makeOk(HTTP, told)
  return makeWarning(HTTP, `${told} (${reason ?? 'for no reason that it tells'}); it goes on when that is mended`)
}
