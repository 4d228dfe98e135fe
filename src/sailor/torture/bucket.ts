/**
 * S3 as the torture has it: an HTTP server that fails, hangs, and lies when it is told to, before a store that keeps
 * what was truly stored. The store is a small stand-in of our own, or the server of a deployment.
 *
 * The stand-in knows PUT, GET, HEAD and DELETE of whole objects in one bucket, with If-None-Match and If-Match.
 */

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse, request as sendRequest } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { join } from 'node:path'
import type { S3FaultKind } from './plan.ts'

/** Of a hundred requests during a fault so many meet it: a client that tries again may have luck. */
const HIT_SHARE = 75
const LONGEST_HANG_MS = 8_000
const SLOW_MS = 1_200
const MAX_BODY_BYTES = 64 * 2 ** 20

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
}

/** What is behind the faults. */
export type Backend = (request: IncomingMessage, body: Buffer) => Promise<Answer>

export interface Bucket {
  readonly url: string
  /** Requests of the next `durationMs` meet this fault, most of them. */
  disturb(kind: S3FaultKind, durationMs: number): void
  calm(): void
  /** requests that met a fault */
  readonly hits: () => number
  close(): Promise<void>
}

/** @param isHit one throw for each request: does it meet the fault of the hour? */
export async function startBucket(backend: Backend, isHit: (share: number) => boolean): Promise<Bucket> {
  const sockets = new Set<Socket>()
  const sea = { fault: undefined as S3FaultKind | undefined, until: 0, hits: 0 }
  const server = createServer((request, response) => {
    const fault = performance.now() < sea.until && isHit(HIT_SHARE) ? sea.fault : undefined
    if (fault !== undefined) sea.hits++
    serve(backend, request, response, fault, () => Math.min(sea.until - performance.now(), LONGEST_HANG_MS)).catch(() =>
      request.socket.destroy(),
    )
  })
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    disturb: (kind, durationMs) => {
      sea.fault = kind
      sea.until = performance.now() + durationMs
    },
    calm: () => {
      sea.until = 0
    },
    hits: () => sea.hits,
    close: () => closeServer(server, sockets),
  }
}

async function closeServer(server: Server, sockets: ReadonlySet<Socket>): Promise<void> {
  server.close()
  for (const socket of sockets) socket.destroy()
}

async function serve(
  backend: Backend,
  request: IncomingMessage,
  response: ServerResponse,
  fault: S3FaultKind | undefined,
  hangMs: () => number,
): Promise<void> {
  if (fault === 's3-reset') {
    await Promise.race([once(request, 'data'), once(request, 'end'), pause(200)])
    request.socket.resetAndDestroy()
    return
  }
  const body = await readBody(request)
  switch (fault) {
    case 's3-500':
      return send(request, response, makeError(500, 'InternalError'))
    case 's3-503':
      return send(request, response, makeError(503, 'SlowDown'))
    case 's3-hang':
      await pause(hangMs())
      return void request.socket.destroy()
    case 's3-slow':
      await pause(SLOW_MS)
      return send(request, response, await backend(request, body))
    case 's3-truncate':
      return truncate(request, response, await backend(request, body))
    case 's3-forget':
      await backend(request, body)
      return void request.socket.destroy()
    case undefined:
      return send(request, response, await backend(request, body))
    default:
      return fault satisfies never
  }
}

function send(request: IncomingMessage, response: ServerResponse, { status, headers, body }: Answer): void {
  response.writeHead(status, { 'content-length': body.length, ...headers })
  response.end(request.method === 'HEAD' ? undefined : body)
}

/** Announces more than it sends. */
function truncate(request: IncomingMessage, response: ServerResponse, { status, headers, body }: Answer): void {
  const shown = body.subarray(0, Math.floor(body.length / 2))
  response.writeHead(status, { ...headers, 'content-length': body.length + 100 })
  response.write(request.method === 'HEAD' || shown.length === 0 ? ' ' : shown, () => request.socket.destroy())
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > MAX_BODY_BYTES) throw new Error('the body is too long')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)).unref())
}

function makeError(status: number, code: string): Answer {
  const body = Buffer.from(
    `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>torture</Message></Error>`,
  )
  return { status, headers: { 'content-type': 'application/xml' }, body }
}

interface StoredObject {
  readonly sha256: string
  readonly bytes: number
  readonly headers: Readonly<Record<string, string>>
}

export interface StandIn {
  readonly backend: Backend
  /** what is stored under a key, without the bucket's name */
  find(key: string): StoredObject | undefined
  read(key: string): Buffer | undefined
  /** sha256 of all bodies that were ever stored under a key, in order, without repetitions in a row */
  history(key: string): readonly string[]
}

/** @param dir where bodies rest, by their sha256: equal ones take room once */
export function makeStandIn(bucketName: string, dir: string): StandIn {
  mkdirSync(dir, { recursive: true })
  const objects = new Map<string, StoredObject>()
  const histories = new Map<string, string[]>()
  const pathOf = (sha256: string) => join(dir, sha256)
  const keep = (key: string, request: IncomingMessage, body: Buffer) => {
    const sha256 = createHash('sha256').update(body).digest('hex')
    if (!existsSync(pathOf(sha256))) writeFileSync(pathOf(sha256), body)
    objects.set(key, { sha256, bytes: body.length, headers: headersToKeep(request) })
    const history = histories.get(key) ?? []
    if (history.at(-1) !== sha256) history.push(sha256)
    histories.set(key, history)
  }
  const read = (key: string) => {
    const object = objects.get(key)
    return object === undefined ? undefined : readFileSync(pathOf(object.sha256))
  }
  const backend: Backend = async (request, body) => {
    const [, bucket = '', ...rest] = decodeURIComponent(new URL(request.url ?? '/', 'http://localhost').pathname).split(
      '/',
    )
    if (bucket !== bucketName) return makeError(404, 'NoSuchBucket')
    const key = rest.join('/')
    if (key === '')
      return request.method === 'HEAD'
        ? { status: 200, headers: {}, body: Buffer.alloc(0) }
        : makeError(501, 'NotImplemented')
    const refusal = refuse(request, objects.get(key))
    if (refusal !== undefined) return refusal
    if (request.method === 'PUT') keep(key, request, body)
    if (request.method === 'DELETE') objects.delete(key)
    return answer(request, objects.get(key), () => read(key) ?? Buffer.alloc(0))
  }
  return { backend, find: (key) => objects.get(key), read, history: (key) => histories.get(key) ?? [] }
}

function refuse(request: IncomingMessage, there: StoredObject | undefined): Answer | undefined {
  if (request.url?.includes('uploadId') || request.url?.includes('uploads')) return makeError(501, 'NotImplemented')
  if (String(request.headers['x-amz-content-sha256'] ?? '').startsWith('STREAMING'))
    return makeError(501, 'NotImplemented')
  const { 'if-none-match': none, 'if-match': match } = request.headers
  if (request.method !== 'PUT') return undefined
  if (none === '*' && there !== undefined) return makeError(412, 'PreconditionFailed')
  if (match !== undefined && match !== etagOf(there)) return makeError(412, 'PreconditionFailed')
  return undefined
}

function answer(request: IncomingMessage, object: StoredObject | undefined, read: () => Buffer): Answer {
  const nothing = Buffer.alloc(0)
  switch (request.method) {
    case 'PUT':
      return { status: 200, headers: { etag: etagOf(object) }, body: nothing }
    case 'DELETE':
      return { status: 204, headers: {}, body: nothing }
    case 'GET':
    case 'HEAD': {
      if (object === undefined) return makeError(404, 'NoSuchKey')
      const headers = { ...object.headers, etag: etagOf(object), 'content-length': String(object.bytes) }
      return { status: 200, headers, body: request.method === 'GET' ? read() : nothing }
    }
    default:
      return makeError(501, 'NotImplemented')
  }
}

function etagOf(object: StoredObject | undefined): string {
  return `"${object?.sha256.slice(0, 32) ?? ''}"`
}

function headersToKeep(request: IncomingMessage): Record<string, string> {
  const kept = Object.entries(request.headers).filter(
    ([name]) => name === 'content-type' || name.startsWith('x-amz-meta-'),
  )
  return Object.fromEntries(kept.map(([name, value]) => [name, String(value)]))
}

/** The server of a deployment. Headers go as they came: they are signed, the host among them. */
export function makeForwarder(endpoint: string): Backend {
  const target = new URL(endpoint)
  return async (request, body) => {
    const path = `${target.pathname.replace(/\/$/, '')}${request.url ?? '/'}`
    const { hostname, port } = target
    const { method } = request
    const headers = { ...request.headers, connection: 'close' }
    const upstream = sendRequest({ hostname, port: port || 80, method, path, headers })
    upstream.end(body)
    const [reply] = (await once(upstream, 'response')) as [IncomingMessage]
    const { 'transfer-encoding': _encoding, connection: _connection, ...rest } = reply.headers
    return { status: reply.statusCode ?? 502, headers: rest, body: await readBody(reply) }
  }
}
