/** Results in a bucket, on AWS or any server that speaks S3, under `<prefix><uuid>/<name>`. The only door to the SDK. */

import { randomBytes } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { extname } from 'node:path'
import {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadBucketCommand,
  PutObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3'
import { Upload } from '@aws-sdk/lib-storage'
import { describe } from '../job/package.ts'
import { checkPublication, checkUuid, errnoOf, openSource } from './publication.ts'
import { type Probe, type Publication, type S3Options, type S3Store, StoreError } from './store.ts'

const MIB = 1024 * 1024
/** Larger files go up in parts; smaller ones are held in memory, so that a try can be repeated. */
const MULTIPART_BYTES = 16 * MIB
const PART_BYTES = 8 * MIB
const PARTS_AT_ONCE = 2
/** what S3 takes */
const MAX_PARTS = 10_000

const ATTEMPTS = 3
const CONNECTION_MS = 3_000
/** without a byte in either direction */
const IDLE_MS = 20_000
/** from the start of a request to its answer; a part has 8 MiB */
const REQUEST_MS = 120_000
const CHECK_MS = 10_000
/** together less than CHECK_MS */
const PROBE_MS = 6_500
const REMOVAL_MS = 3_000

const CONTENT_TYPES: Readonly<Record<string, string>> = {
  '.json': 'application/json; charset=utf-8',
  '.geojson': 'application/geo+json',
  '.log': 'text/plain; charset=utf-8',
  '.txt': 'text/plain; charset=utf-8',
  '.md': 'text/markdown; charset=utf-8',
  '.csv': 'text/csv; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.xml': 'application/xml',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
  '.jpeg': 'image/jpeg',
  '.gif': 'image/gif',
  '.webp': 'image/webp',
  '.pdf': 'application/pdf',
  '.zip': 'application/zip',
  '.gz': 'application/gzip',
}

/** One bucket with all that its keys and messages need. */
interface Bucket {
  readonly client: S3Client
  readonly name: string
  readonly prefix: string
  /** for messages: never with credentials that an endpoint's URL may carry */
  readonly label: string
}

export async function openS3(options: S3Options): Promise<S3Store> {
  const bucket: Bucket = {
    client: makeClient(options),
    name: options.bucket,
    prefix: options.prefix,
    label: `S3 bucket ${options.bucket} at ${placeOf(options)}`,
  }
  return {
    check: () => checkBucket(bucket, CHECK_MS),
    probe: () => probe(bucket),
    publish: (publication, beforeCommit) => publish(bucket, publication, beforeCommit),
    writeStatus: async (uuid, status) => {
      checkUuid(uuid)
      await putText(bucket, uuid, 'status.json', status)
    },
    read: (uuid, document, signal) => readDocument(bucket, uuid, document, signal),
    close: async () => bucket.client.destroy(),
  }
}

function makeClient(options: S3Options): S3Client {
  // The SDK's own switch for the warning about Node 20 that it would print when its first client is made.
  process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = 'true'
  return new S3Client({
    region: options.region,
    forcePathStyle: options.forcePathStyle,
    maxAttempts: ATTEMPTS,
    requestHandler: {
      connectionTimeout: CONNECTION_MS,
      socketTimeout: IDLE_MS,
      requestTimeout: REQUEST_MS,
      throwOnRequestTimeout: true,
    },
    ...(options.endpoint === undefined
      ? {}
      : {
          endpoint: options.endpoint,
          // With the default, servers that are not AWS refuse an upload or store its framing as data.
          requestChecksumCalculation: 'WHEN_REQUIRED',
          responseChecksumValidation: 'WHEN_REQUIRED',
        }),
  })
}

async function publish(
  bucket: Bucket,
  publication: Publication,
  beforeCommit: () => Promise<boolean> = async () => true,
): Promise<boolean> {
  checkPublication(publication)
  const { uuid, files, status, result, signal } = publication
  // An earlier try whose answer was lost, or another host: nothing beside its result may change.
  const there = result === undefined ? undefined : await readDocument(bucket, uuid, 'result.json', signal)
  if (there !== undefined) return isSame(bucket, uuid, there, result)
  if (!(await beforeCommit())) return false
  for (const [name, path] of files) await putFile(bucket, uuid, name, path, signal)
  await putText(bucket, uuid, 'status.json', status, signal)
  if (result === undefined) return true
  if (!(await beforeCommit())) return false
  return putResult(bucket, uuid, result, signal)
}

/** Under the condition that there is none; a server that does not know the condition takes it all the same. */
async function putResult(bucket: Bucket, uuid: string, result: string, signal?: AbortSignal): Promise<boolean> {
  try {
    await putBody(bucket, uuid, 'result.json', Buffer.from(result), { signal, ifNoneMatch: '*' })
    return true
  } catch (error) {
    const status = error instanceof StoreError ? statusOf(error.cause) : undefined
    if (status === 412 || status === 409) {
      return isSame(bucket, uuid, await readDocument(bucket, uuid, 'result.json', signal), result)
    }
    if (status !== 501) throw error
    await putText(bucket, uuid, 'result.json', result, signal)
    return true
  }
}

/** What answers for the bucket may be a proxy with a page of its own: that is no result of another host. */
function isSame(bucket: Bucket, uuid: string, there: string | undefined, result: string | undefined): boolean {
  if (there === result) return true
  if (there?.includes(uuid)) return false
  throw new StoreError('unavailable', `${bucket.label}: what it has for ${uuid}/result.json is no result of that job`)
}

async function putFile(
  bucket: Bucket,
  uuid: string,
  name: string,
  path: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  let handle: FileHandle | undefined
  try {
    handle = await openSource(name, path)
    const { size } = await handle.stat()
    if (size > MULTIPART_BYTES) await putParts(bucket, uuid, name, handle, size, signal)
    else await putBody(bucket, uuid, name, await handle.readFile(), { signal })
  } catch (cause) {
    if (cause instanceof StoreError) throw cause
    throw new StoreError('failed', `${name} cannot be published: ${path} cannot be read (${reasonOf(cause)})`, cause)
  } finally {
    await handle?.close()
  }
}

async function putText(
  bucket: Bucket,
  uuid: string,
  name: string,
  text: string,
  signal?: AbortSignal | undefined,
): Promise<void> {
  await putBody(bucket, uuid, name, Buffer.from(text), { signal })
}

async function putBody(
  bucket: Bucket,
  uuid: string,
  name: string,
  body: Buffer,
  { signal, ifNoneMatch }: { signal?: AbortSignal | undefined; ifNoneMatch?: string } = {},
): Promise<void> {
  const target = { ...targetOf(bucket, uuid, name), ContentType: contentTypeOf(name) }
  const condition = ifNoneMatch === undefined ? {} : { IfNoneMatch: ifNoneMatch }
  try {
    const command = new PutObjectCommand({ ...target, ...condition, Body: body, ContentLength: body.length })
    await bucket.client.send(command, abortable(signal))
  } catch (cause) {
    throw storeError(bucket, `could not store ${target.Key}`, cause)
  }
}

/** At most `PARTS_AT_ONCE` parts are in memory; what was sent is given up on a failure, so that it costs nothing. */
async function putParts(
  bucket: Bucket,
  uuid: string,
  name: string,
  source: FileHandle,
  bytes: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const target = { ...targetOf(bucket, uuid, name), ContentType: contentTypeOf(name) }
  const body = source.createReadStream({ highWaterMark: MIB, start: 0, end: bytes - 1, autoClose: false })
  try {
    const partSize = Math.max(PART_BYTES, Math.ceil(bytes / MAX_PARTS))
    const params = { ...target, Body: body, ContentLength: bytes }
    const upload = new Upload({ client: bucket.client, params, partSize, queueSize: PARTS_AT_ONCE })
    const abort = () => void upload.abort().catch(() => undefined)
    signal?.addEventListener('abort', abort, { once: true })
    await upload.done().finally(() => signal?.removeEventListener('abort', abort))
  } catch (cause) {
    throw storeError(bucket, `could not store ${target.Key} (${bytes} bytes)`, cause)
  } finally {
    body.destroy()
  }
}

function abortable(signal: AbortSignal | undefined): { abortSignal?: AbortSignal } {
  return signal === undefined ? {} : { abortSignal: signal }
}

async function readDocument(
  bucket: Bucket,
  uuid: string,
  document: string,
  signal?: AbortSignal | undefined,
): Promise<string | undefined> {
  checkUuid(uuid)
  const target = targetOf(bucket, uuid, document)
  try {
    const { Body } = await bucket.client.send(new GetObjectCommand(target), abortable(signal))
    return await Body?.transformToString('utf-8')
  } catch (cause) {
    if (statusOf(cause) === 404 && nameOf(cause) !== 'NoSuchBucket') return undefined
    throw storeError(bucket, `could not read ${target.Key}`, cause)
  }
}

async function checkBucket(bucket: Bucket, limitMs: number): Promise<string[]> {
  try {
    await bucket.client.send(new HeadBucketCommand({ Bucket: bucket.name }), {
      abortSignal: AbortSignal.timeout(limitMs),
    })
    return []
  } catch (cause) {
    return [storeError(bucket, 'cannot be used', cause).message]
  }
}

async function probe(bucket: Bucket): Promise<Probe> {
  const key = `${bucket.prefix}.qworker-check-${randomBytes(8).toString('hex')}`
  const target = { Bucket: bucket.name, Key: key }
  const clock = watchClock(bucket.client)
  const until = performance.now() + PROBE_MS
  const timeLeft = () => ({ abortSignal: AbortSignal.timeout(Math.max(1, Math.floor(until - performance.now()))) })
  const problems = await checkBucket(bucket, PROBE_MS)
  if (problems.length > 0) return { problems, left: undefined, clockAheadMs: clock() }
  let step = 'store'
  try {
    await bucket.client.send(new PutObjectCommand({ ...target, Body: key, ContentLength: key.length }), timeLeft())
    step = 'read'
    const { Body } = await bucket.client.send(new GetObjectCommand(target), timeLeft())
    const found = await Body?.transformToString('utf-8')
    if (found !== key) problems.push(`${bucket.label}: what was stored as ${key} comes back changed; see that server`)
  } catch (cause) {
    problems.push(storeError(bucket, `could not ${step} ${key}`, cause).message)
  }
  // A try that failed may have been stored all the same.
  const why = await bucket.client
    .send(new DeleteObjectCommand(target), { abortSignal: AbortSignal.timeout(REMOVAL_MS) })
    .then(
      () => undefined,
      (cause: unknown) => storeError(bucket, `could not remove ${key}`, cause).message,
    )
  const left = why === undefined || step === 'store' ? undefined : { key, why }
  return { problems, left, clockAheadMs: clock() }
}

/** Reads the date of each answer from now on. */
function watchClock(client: S3Client): () => number | undefined {
  let aheadMs: number | undefined
  client.middlewareStack.add(
    (next) => async (args) => {
      const asked = Date.now()
      const output = await next(args)
      const { headers } = (output.response ?? {}) as { headers?: Record<string, string> }
      // Whole seconds, cut off; it was written some time between question and answer.
      const said = Date.parse(headers?.date ?? '') + 500
      if (!Number.isNaN(said)) aheadMs = said - (asked + Date.now()) / 2
      return output
    },
    { step: 'deserialize', priority: 'low', name: 'qworkerClock' },
  )
  return () => aheadMs
}

function targetOf(bucket: Bucket, uuid: string, name: string): { Bucket: string; Key: string } {
  return { Bucket: bucket.name, Key: `${bucket.prefix}${uuid}/${name}` }
}

function contentTypeOf(name: string): string {
  return CONTENT_TYPES[extname(name).toLowerCase()] ?? 'application/octet-stream'
}

function placeOf({ endpoint, region }: S3Options): string {
  if (endpoint === undefined) return `AWS (${region})`
  return URL.canParse(endpoint) ? new URL(endpoint).host : 'its endpoint'
}

/** Says what happened in our own words: what a server answers may repeat an access key. */
function storeError(bucket: Bucket, failure: string, cause: unknown): StoreError {
  const name = nameOf(cause)
  const status = statusOf(cause)
  const subject = `${bucket.label}: ${failure}`
  if (/^(CredentialsProviderError|TokenProviderError)$/.test(name)) {
    const remedy = 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role'
    return new StoreError('denied', `${subject}: no credentials were found; ${remedy}`, cause)
  }
  if (name === 'NoSuchBucket' || name === 'NotFound') {
    const remedy = `create it (aws s3 mb s3://${bucket.name}) or correct S3_BUCKET`
    return new StoreError('unavailable', `${subject}: there is no such bucket (HTTP 404); ${remedy}`, cause)
  }
  if (status === 301 || name === 'AuthorizationHeaderMalformed' || name === 'PermanentRedirect') {
    return new StoreError('denied', `${subject}: the bucket is in another region; correct S3_REGION`, cause)
  }
  if (status === 401 || status === 403) {
    const said = name === 'AccessDenied' || !/^[A-Z][A-Za-z]{2,60}$/.test(name) ? '' : `, ${name}`
    const remedy = 'check the credentials and that they may list, read and put there'
    return new StoreError('denied', `${subject}: access denied (HTTP ${status}${said}); ${remedy}`, cause)
  }
  if (status === undefined && isConnectionFailure(cause)) {
    const remedy = 'check S3_ENDPOINT, the network and that the server runs'
    return new StoreError('unavailable', `${subject}: not reachable (${reasonOf(cause)}); ${remedy}`, cause)
  }
  if (status === undefined) {
    return new StoreError('failed', `${subject}: ${reasonOf(cause)}; check the S3_ settings`, cause)
  }
  const passing = status >= 500 || status === 429
  const answer = `HTTP ${status}, ${name}; see the log of the S3 server`
  return new StoreError(passing ? 'unavailable' : 'failed', `${subject}: ${answer}`, cause)
}

function isConnectionFailure(cause: unknown): boolean {
  const codes = /^(E(CONN|NOT|HOST|NET|AI_|PIPE|TIMEDOUT|PROTO|ADDR)|CERT|DEPTH|SELF|UNABLE|ERR_(TLS|SSL|SOCKET))/
  return isTimeout(cause) || codes.test(errnoOf(cause))
}

function isTimeout(cause: unknown): boolean {
  return ['TimeoutError', 'AbortError'].includes(nameOf(cause))
}

function reasonOf(cause: unknown): string {
  if (isTimeout(cause)) return 'no answer in time'
  return errnoOf(cause) || describe(cause instanceof Error ? cause.message : cause)
}

function nameOf(cause: unknown): string {
  return cause instanceof Error ? cause.name : ''
}

function statusOf(cause: unknown): number | undefined {
  if (!(cause instanceof Error && '$metadata' in cause)) return undefined
  const { httpStatusCode } = cause.$metadata as { httpStatusCode?: number }
  return httpStatusCode
}
