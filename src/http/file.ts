/** One published file as an answer: conditions and range are decided here, the bytes are sent by serve-handler. */

import { constants, type Stats } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { dirname } from 'node:path'
import { Readable } from 'node:stream'
import serveHandler from 'serve-handler'
import type { StoredFile } from '../store/store.ts'
import { COMMON_HEADERS, JSON_TYPE } from './answer.ts'
import { type ByteRange, chooseRange, isFresh, type Validators } from './precondition.ts'

/**
 * Sends a file that the store found; resolves to false, with nothing sent, when it is gone meanwhile.
 * The file is opened once and all is answered from that descriptor: whatever happens to its name later, the headers
 * and the bytes are of one file.
 */
export async function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  file: StoredFile,
  name: string,
): Promise<boolean> {
  const handle = await openFound(file.path)
  if (!handle) return false
  let streaming = false
  try {
    const stats = await handle.stat()
    if (!stats.isFile()) return false
    const validators = { etag: etagOf(stats), modified: stats.mtime }
    for (const [name, value] of Object.entries(COMMON_HEADERS)) response.setHeader(name, value)
    response.setHeader('ETag', validators.etag)
    response.setHeader('Last-Modified', stats.mtime.toUTCString())
    response.setHeader('Cache-Control', 'no-cache')
    if (isFresh(request.headers, validators)) {
      response.writeHead(304).end()
      return true
    }
    const range = request.method === 'GET' ? chooseRange(request.headers, validators, stats.size) : undefined
    if (range === 'unsatisfiable') {
      sendUnsatisfiable(response, stats.size)
      return true
    }
    response.setHeader('Content-Type', 'application/octet-stream')
    await serveFrom(response, stats, file.path, name, range, (limits) => {
      if (request.method === 'HEAD') return Readable.from([])
      streaming = true
      return openStream(response, handle, limits, stats.size)
    })
    return true
  } finally {
    if (!streaming) await handle.close()
  }
}

/** Text of a file that the store found; undefined when it is gone meanwhile. */
export async function readFound({ path }: StoredFile): Promise<string | undefined> {
  const handle = await openFound(path)
  try {
    if (!(await handle?.stat())?.isFile()) return undefined
    return await handle?.readFile('utf8')
  } finally {
    await handle?.close()
  }
}

async function openFound(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}

/**
 * Hands the sending to serve-handler. It sees a request with a path of one name and, when we took it, a range; it asks
 * the file system nothing, since the answers are handed to it.
 */
async function serveFrom(
  response: ServerResponse,
  stats: Stats,
  path: string,
  name: string,
  range: ByteRange | undefined,
  createReadStream: (limits: Partial<ByteRange>) => Readable,
): Promise<void> {
  const headers = range ? { range: `bytes=${range.start}-${range.end}` } : {}
  const asked = { url: `/${encodeURIComponent(name)}`, method: 'GET', headers } as unknown as IncomingMessage
  const refuse = async () => {
    throw new Error('serve-handler did not serve a file that is there')
  }
  const methods = {
    lstat: async () => stats,
    realpath: refuse,
    readdir: refuse,
    sendError: refuse,
    createReadStream: (_path: string, limits: Partial<ByteRange> = {}) => createReadStream(limits),
  }
  const config = {
    public: dirname(path),
    cleanUrls: false,
    directoryListing: false,
    renderSingle: false,
    symlinks: false,
    etag: false,
  }
  await serveHandler(asked, response, config, methods as unknown as Parameters<typeof serveHandler>[3])
}

/**
 * A stream that ends with the answer, whoever breaks off. A failure in the middle breaks the connection, so that the
 * client sees it.
 */
function openStream(
  response: ServerResponse,
  handle: FileHandle,
  { start = 0, end }: Partial<ByteRange>,
  bytes: number,
): Readable {
  const stream = handle.createReadStream({ start, ...(end === undefined ? {} : { end }) })
  const expected = (end ?? bytes - 1) - start + 1
  stream.on('error', () => response.destroy())
  stream.on('end', () => {
    if (stream.bytesRead !== expected) response.destroy()
  })
  response.on('close', () => stream.destroy())
  if (response.destroyed) stream.destroy()
  return stream
}

function sendUnsatisfiable(response: ServerResponse, bytes: number): void {
  const message = `the file has ${bytes} bytes; the range lies behind its end`
  const text = `${JSON.stringify({ error: 'range_not_satisfiable', message })}\n`
  response.writeHead(416, {
    'Content-Type': JSON_TYPE,
    'Content-Length': Buffer.byteLength(text),
    'Content-Range': `bytes */${bytes}`,
  })
  response.end(text)
}

/** Published files are never written again; another version is another inode with another time. */
function etagOf({ size, mtimeMs }: Stats): Validators['etag'] {
  return `"${size.toString(36)}-${Math.round(mtimeMs * 1000).toString(36)}"`
}
