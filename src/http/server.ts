/** The HTTP server of a worker: results, statuses and files of jobs, for browsers and programs. GET and HEAD only. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { encodeStatus, parseStatus, type StatusDocument } from '../job/result.ts'
import type { LocalStore } from '../store/store.ts'
import { sendJson, sendPreflight, sendRefusal } from './answer.ts'
import { makeDocument, Shelf, sendDocument } from './document.ts'
import { readFound, sendFile } from './file.ts'
import { makeRefusal, makeRoute, type Route } from './route.ts'

const MAX_HEADER_BYTES = 16 * 1024
const HEADERS_MS = 10_000
const REQUEST_MS = 20_000
const KEEP_ALIVE_MS = 5_000
/** without a byte in either direction, in the middle of an answer too */
const IDLE_MS = 120_000
const TIMEOUT_CHECK_MS = 2_000
/** More clients at a time than a worker has; fewer where files are few. */
export const MAX_CONNECTIONS = 512
const CLOSE_MS = 2_000

/** Larger documents are streamed like any file; their ETag then comes from size and time. */
const MAX_HASHED_BYTES = 1024 * 1024

export interface ResultServerOptions {
  readonly store: LocalStore
  readonly host: string
  /** 0 for any free one */
  readonly port: number
  /** What a job is doing now in this worker; undefined when it is not here. */
  readonly running: (uuid: string) => StatusDocument | undefined
  /** Fields of `/healthz`. */
  readonly health: () => Record<string, unknown>
  /** Clients at a time, so that descriptors are left for the jobs of the same process; further ones are turned away. */
  readonly maxConnections?: number
  /** Told of a request that ended in 500; the client is told nothing of the cause. */
  readonly onError?: (error: unknown) => void
}

interface Serving extends ResultServerOptions {
  readonly shelf: Shelf
}

export interface ResultServer {
  readonly host: string
  readonly port: number
  /** Stops listening, and waits at most 2 s for answers that are under way. */
  close(): Promise<void>
}

/**
 * Starts listening.
 * @throws the error of the system as it came, with its code (EADDRINUSE, EACCES, EADDRNOTAVAIL)
 */
export async function startResultServer(options: ResultServerOptions): Promise<ResultServer> {
  const serving: Serving = { ...options, shelf: new Shelf() }
  const settings = { maxHeaderSize: MAX_HEADER_BYTES, connectionsCheckingInterval: TIMEOUT_CHECK_MS }
  const server = createServer(settings, (request, response) => {
    response.on('error', () => {})
    response.on('finish', () => {
      if (!server.listening) setImmediate(() => server.closeIdleConnections())
    })
    if (!server.listening) response.setHeader('Connection', 'close')
    answer(serving, request, response).catch((error) => fail(options, request, response, error))
  })
  server.headersTimeout = HEADERS_MS
  server.requestTimeout = REQUEST_MS
  server.keepAliveTimeout = KEEP_ALIVE_MS
  server.timeout = IDLE_MS
  server.maxConnections = Math.min(options.maxConnections ?? MAX_CONNECTIONS, MAX_CONNECTIONS)
  server.on('clientError', refuseGarbage)
  await listen(server, options.host, options.port)
  server.on('error', (error) => options.onError?.(error))
  const { address, port } = server.address() as AddressInfo
  return { host: address, port, close: () => close(server) }
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, () => {
      server.off('error', reject)
      resolve()
    })
  })
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => server.closeAllConnections(), CLOSE_MS)
    server.close(() => {
      clearTimeout(timer)
      resolve()
    })
    server.closeIdleConnections()
  })
}

/** One broken request never ends the process, and never goes without an answer. */
function fail(options: ResultServerOptions, request: IncomingMessage, response: ServerResponse, error: unknown): void {
  try {
    options.onError?.(error)
    if (response.headersSent) {
      response.destroy()
      return
    }
    for (const name of ['ETag', 'Last-Modified', 'Cache-Control', 'Content-Type']) response.removeHeader(name)
    const message = 'the answer could not be made; the log of the worker has the reason'
    sendRefusal(request, response, makeRefusal(500, 'internal_error', message))
  } catch {
    response.destroy()
  }
}

/** Bytes that are no HTTP request, or too many of them; there is no response object yet. */
function refuseGarbage(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable || socket.bytesWritten > 0) {
    socket.destroy()
    return
  }
  const [line, name, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ['431 Request Header Fields Too Large', 'headers_too_large', `headers may have ${MAX_HEADER_BYTES} bytes`]
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? ['408 Request Timeout', 'request_timeout', 'the request did not arrive in time']
        : ['400 Bad Request', 'bad_request', 'this is no HTTP request']
  const body = `${JSON.stringify({ error: name, message })}\n`
  const type = 'Content-Type: application/json; charset=utf-8\r\nX-Content-Type-Options: nosniff'
  socket.end(`HTTP/1.1 ${line}\r\nConnection: close\r\n${type}\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
}

async function answer(serving: Serving, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const route: Route = makeRoute(request.method ?? '', request.url ?? '')
  switch (route.kind) {
    case 'preflight':
      return sendPreflight(response)
    case 'refusal':
      return sendRefusal(request, response, route)
    case 'health':
      return sendJson(request, response, 200, `${JSON.stringify(serving.health())}\n`)
    case 'result':
      return answerResult(serving, request, response, route.uuid)
    case 'status':
      return answerStatus(serving, request, response, route.uuid)
    case 'file':
      return answerFile(serving, request, response, route.uuid, route.name)
    default: {
      const missing: never = route
      throw new Error(`no answer for ${JSON.stringify(missing)}`)
    }
  }
}

async function answerResult(
  serving: Serving,
  request: IncomingMessage,
  response: ServerResponse,
  uuid: string,
): Promise<void> {
  if (await answerDocument(serving, request, response, uuid, 'result.json')) return
  const current = serving.running(uuid)
  const text = current ? encodeStatus(current) : await serving.store.read(uuid, 'status.json')
  if (text === undefined) return sendRefusal(request, response, unknownJob(uuid))
  const status = current ?? parseStatus(text)
  if (!status) throw new Error(`status.json of job ${uuid} is not a status document of this version`)
  // Published between the first look and the second: status.json is written before result.json.
  if (status.state === 'complete' && (await answerDocument(serving, request, response, uuid, 'result.json'))) return
  const code = codeOf(status)
  sendJson(request, response, code, text, code === 202 ? { 'Retry-After': retryAfterSeconds(status) } : {})
}

function codeOf({ state }: StatusDocument): 202 | 410 | 422 {
  switch (state) {
    case 'scheduled':
    case 'queued':
    case 'running':
    case 'complete':
      return 202
    case 'failed':
    case 'stopped':
    case 'discarded':
      return 422
    case 'expired':
      return 410
    default: {
      const missing: never = state
      throw new Error(`no code for state ${JSON.stringify(missing)}`)
    }
  }
}

function retryAfterSeconds({ retry_at }: StatusDocument): number {
  const seconds = Math.ceil((Date.parse(retry_at ?? '') - Date.now()) / 1000)
  return Math.max(1, seconds || 1)
}

async function answerStatus(
  serving: Serving,
  request: IncomingMessage,
  response: ServerResponse,
  uuid: string,
): Promise<void> {
  const current = serving.running(uuid)
  // A complete job that runs once more, since its worker died before it was settled, stays complete.
  if (current && current.state !== 'complete' && !(await serving.store.find(uuid, 'result.json'))) {
    return sendDocument(request, response, makeDocument(encodeStatus(current), new Date(current.timestamp)))
  }
  if (await answerDocument(serving, request, response, uuid, 'status.json')) return
  if (current) return sendDocument(request, response, makeDocument(encodeStatus(current), new Date(current.timestamp)))
  sendRefusal(request, response, unknownJob(uuid))
}

/** Resolves to false, with nothing sent, when there is no such document. */
async function answerDocument(
  { store, shelf }: Serving,
  request: IncomingMessage,
  response: ServerResponse,
  uuid: string,
  document: 'result.json' | 'status.json',
): Promise<boolean> {
  const name = `${uuid}/${document}`
  const held = shelf.get(name)
  const file = await store.find(uuid, document, held?.file)
  if (!file) return false
  if (held?.file === file) {
    sendDocument(request, response, held.document)
    return true
  }
  if (file.bytes > MAX_HASHED_BYTES) return sendFile(request, response, file, document)
  const text = await readFound(file)
  if (text === undefined) return false
  const made = makeDocument(text, file.modified)
  shelf.put(name, file, made)
  sendDocument(request, response, made)
  return true
}

async function answerFile(
  { store }: Serving,
  request: IncomingMessage,
  response: ServerResponse,
  uuid: string,
  name: string,
): Promise<void> {
  const file = await store.find(uuid, name)
  if (file && (await sendFile(request, response, file, name))) return
  const message = `there is no such file, or it is not published yet; /${uuid}/status.json tells about the job`
  sendRefusal(request, response, makeRefusal(404, 'not_found', message, uuid))
}

function unknownJob(uuid: string) {
  return makeRefusal(
    404,
    'unknown_job',
    'no job of this uuid ran here; it may wait in its queue, or the uuid is wrong',
    uuid,
  )
}
