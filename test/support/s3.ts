/** A bucket for tests: a stand-in for S3 that can be away in several ways, and remembers in which order it was written. */

import { mkdtempSync, rmSync } from 'node:fs'
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import S3rver from 's3rver'
import { onTestFinished } from 'vitest'

/**
 * `down`: connections are cut; `broken`: HTTP 500; `hangs`: no answer, ever; `truncates`: half an answer.
 */
export type S3Mood = 'up' | 'down' | 'broken' | 'hangs' | 'truncates'

export interface TestS3 {
  readonly port: number
  /** for a worker */
  readonly env: Record<string, string>
  mood: S3Mood
  /** uuid -> the HTTP status that all its requests get, whatever the mood */
  readonly refused: Map<string, number>
  /** uuids whose result.json was stored, in this order */
  readonly results: readonly string[]
  /** `GET <uuid>/<name>` and the like, of workers */
  readonly asked: readonly string[]
  /** requests that were not served since the mood changed last */
  readonly spoiled: () => number
  /** text of an object, as any client sees it; undefined when there is none */
  get(uuid: string, name: string): Promise<string | undefined>
}

const BUCKET = 'results'
const PREFIX = 'prod/'

export async function startS3(): Promise<TestS3> {
  const directory = mkdtempSync(join(tmpdir(), 'qworker-s3-'))
  const rver = new S3rver({
    ...{ address: '127.0.0.1', port: 0, silent: true, directory },
    configureBuckets: [{ name: BUCKET }],
  })
  const { port } = await rver.run()
  const server = rver.httpServer
  const [serve] = server.listeners('request') as RequestListener[]
  if (serve === undefined) throw new Error('s3rver does not listen to requests')
  const results: string[] = []
  const refused = new Map<string, number>()
  const asked: string[] = []
  let mood: S3Mood = 'up'
  let spoiled = 0
  server.removeAllListeners('request')
  server.on('request', (request, response) => {
    const url = request.url ?? ''
    const [, uuid = '', name = ''] = /\/([0-9a-f]{32})\/([^/?]+)/.exec(url) ?? []
    const status = refused.get(uuid)
    if (status !== undefined) return void answer(request, response, status)
    asked.push(`${request.method} ${uuid}/${name}`)
    if (mood === 'up' || request.headers['user-agent'] === 'test') {
      response.on('finish', () => {
        if (request.method === 'PUT' && name === 'result.json' && response.statusCode === 200) results.push(uuid)
      })
      return void serve(request, response)
    }
    spoiled++
    spoil(mood, request, response)
  })
  const endpoint = `http://127.0.0.1:${port}`
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
  })
  return {
    port,
    env: {
      ...{ AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER', S3_BUCKET: BUCKET, S3_PREFIX: PREFIX },
      ...{ S3_ENDPOINT: endpoint, S3_FORCE_PATH_STYLE: 'true', S3_PATIENCE: '1' },
    },
    get mood() {
      return mood
    },
    set mood(next) {
      mood = next
      spoiled = 0
      // What hangs would hang on; a client tries again.
      if (next === 'up') server.closeAllConnections()
    },
    refused,
    results,
    asked,
    spoiled: () => spoiled,
    async get(uuid, name) {
      const response = await fetch(`${endpoint}/${BUCKET}/${PREFIX}${uuid}/${name}`, {
        headers: { 'user-agent': 'test' },
      })
      if (response.status === 404) return undefined
      if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`)
      return response.text()
    },
  }
}

function spoil(mood: Exclude<S3Mood, 'up'>, request: IncomingMessage, response: ServerResponse): void {
  switch (mood) {
    case 'down':
      request.socket.destroy()
      return
    case 'broken':
      answer(request, response, 500)
      return
    case 'hangs':
      request.resume()
      return
    case 'truncates':
      request.resume()
      response.writeHead(200, { 'content-length': '1000' })
      response.write('{"uuid"')
      response.once('error', () => undefined)
      setImmediate(() => request.socket.destroy())
      return
    default:
      throw new TypeError(`unhandled ${mood satisfies never}`)
  }
}

function answer(request: IncomingMessage, response: ServerResponse, status: number): void {
  request.resume()
  response.writeHead(status, { 'content-type': 'application/xml' })
  response.end('<Error><Code>Test</Code><Message>as the test wants it</Message></Error>')
}
