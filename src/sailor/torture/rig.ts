/** All that a torture needs around its workers: folders, broker, proxies, S3, disk. What is built is also taken down. */

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { S3Options } from '../../store/store.ts'
import { type Broker, type BrokerKind, hasBeanstalkd, startBroker } from './broker.ts'
import { type Bucket, makeForwarder, makeStandIn, startBucket } from './bucket.ts'
import { type Copies, copiesInBucket, copiesInStandIn } from './copies.ts'
import { mountSmallDisk, type SmallDisk } from './disk.ts'
import { endAllMarked, MARK } from './marked.ts'
import { startProxy, type TcpProxy } from './proxy.ts'
import { startWatchdog } from './watchdog.ts'

/** Where the torture takes place: in a world of its own, or beside a deployment's workers, on its broker and bucket. */
export type World =
  /** without a broker named: beanstalkd where that is installed */
  | { readonly kind: 'private'; readonly broker: BrokerKind | undefined }
  | {
      readonly kind: 'deployment'
      readonly brokerHost: string
      readonly brokerPort: number
      readonly resultBaseDir: string
      readonly s3: S3Options | undefined
    }

export interface RigOptions {
  readonly world: World
  readonly workers: number
  /** unique among the tortures of a deployment; a plain file name */
  readonly tag: string
  readonly diskMegabytes: number
  /** compiled program */
  readonly qworker: string
  /** PATH and the like */
  readonly environment: Readonly<Record<string, string>>
  readonly isHit: (share: number) => boolean
  readonly keep: boolean
}

export interface Rig {
  readonly base: string
  readonly journal: string
  readonly resultDir: string
  readonly tube: string
  readonly brokerHost: string
  readonly brokerPort: number
  readonly broker: Broker | undefined
  readonly proxies: readonly TcpProxy[]
  readonly producerProxy: TcpProxy
  readonly bucket: Bucket | undefined
  readonly copies: Copies | undefined
  readonly disk: SmallDisk | undefined
  /** rc values that lead the workers here */
  readonly settings: Readonly<Record<string, unknown>>
  /** of the workers; undefined: as the torture's own */
  readonly workerEnv: Readonly<Record<string, string>> | undefined
  /** for people: what was not disturbed, and why; where things are */
  readonly notes: readonly string[]
  /** Resolves to what could not be taken down; does all the rest in any case. */
  takeDown(): Promise<string[]>
}

const BUCKET_NAME = 'torture'

/** @throws Error when something cannot be built; what was built before is taken down again */
export async function buildRig(options: RigOptions): Promise<Rig> {
  const { world, tag, keep } = options
  const base = mkdtempSync(join(tmpdir(), 'qworker-torture-'))
  const resultDir = world.kind === 'private' ? join(base, 'disk') : join(world.resultBaseDir, `.torture-${tag}`)
  const outside = world.kind === 'private' ? undefined : resultDir
  const dismissDog = startWatchdog(options.environment.PATH ?? '', base, join(base, 'disk'), outside)
  const undo: Undo[] = []
  if (!keep) for (const dir of [base, outside]) if (dir !== undefined) undo.push(() => removeTree(dir))
  const takeDown = async () => {
    const problems = await undoAll([...undo, () => endAllMarked(base)])
    // What could not be cleaned up now, the watchdog tries once more when we are gone.
    if (problems.length === 0) dismissDog()
    return problems
  }
  try {
    return { ...(await furnish(options, base, resultDir, undo)), takeDown }
  } catch (error) {
    await takeDown()
    throw error
  }
}

type Undo = () => Promise<unknown> | unknown

/** Last things first; what goes wrong with one keeps none of the others. */
async function undoAll(undo: readonly Undo[]): Promise<string[]> {
  const problems: string[] = []
  for (const action of [...undo].reverse()) {
    try {
      await action()
    } catch (error) {
      problems.push((error as Error).message)
    }
  }
  return problems
}

function removeTree(dir: string): void {
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 })
}

/** @param undo gets what takes down each part, as soon as the part is there */
async function furnish(
  options: RigOptions,
  base: string,
  resultDir: string,
  undo: Undo[],
): Promise<Omit<Rig, 'takeDown'>> {
  const { world, tag, keep, workers } = options
  const notes: string[] = keep ? [`kept: ${base}`] : []
  mkdirSync(join(base, 'journal'))
  const disk = await buildDisk(options, resultDir, notes)
  if (disk !== undefined && !keep) undo.push(() => disk.unmount())
  const broker = world.kind === 'private' ? await buildBroker(options, world.broker, base, notes) : undefined
  if (broker !== undefined) undo.push(() => broker.stop())
  const brokerHost = world.kind === 'private' ? '127.0.0.1' : world.brokerHost
  const brokerPort = world.kind === 'private' ? (broker?.port ?? 0) : world.brokerPort
  const [producerProxy, ...proxies] = await startProxies(brokerHost, brokerPort, workers + 1)
  undo.push(() => Promise.all([producerProxy, ...proxies].map((proxy) => proxy.close())))
  const s3 = await buildS3(options, base, notes)
  undo.push(() => Promise.all([s3.bucket?.close(), s3.copies?.close()]))
  const tube = `torture-${tag}`
  return {
    base,
    journal: join(base, 'journal'),
    resultDir,
    tube,
    brokerHost,
    brokerPort,
    broker,
    proxies,
    producerProxy,
    bucket: s3.bucket,
    copies: s3.copies,
    disk,
    settings: { RESULT_BASEDIR: resultDir, TUBES: [tube], ...s3.settings },
    workerEnv: world.kind === 'private' ? privateEnv(options, base) : undefined,
    notes,
  }
}

async function buildBroker(
  options: RigOptions,
  wanted: BrokerKind | undefined,
  base: string,
  notes: string[],
): Promise<Broker> {
  const env = brokerEnv(options, base)
  const kind = wanted ?? (hasBeanstalkd(env) ? 'beanstalkd' : 'embedded')
  if (wanted === undefined && kind === 'embedded')
    notes.push('beanstalkd is not in PATH: the broker was the embedded one')
  return startBroker({ kind, dir: join(base, 'binlog'), env, qworker: options.qworker })
}

async function startProxies(host: string, port: number, count: number): Promise<[TcpProxy, ...TcpProxy[]]> {
  const first = await startProxy(host, port)
  return [first, ...(await Promise.all(Array.from({ length: count - 1 }, () => startProxy(host, port))))]
}

function brokerEnv({ environment }: RigOptions, base: string): Record<string, string> {
  return { ...environment, [MARK]: `${base}/broker` }
}

/** Credentials that our stand-in does not check, and that the SDK wants to have. */
function privateEnv({ environment }: RigOptions, base: string): Record<string, string> {
  return { ...environment, HOME: base, AWS_ACCESS_KEY_ID: 'torture', AWS_SECRET_ACCESS_KEY: 'torture' }
}

async function buildDisk(options: RigOptions, resultDir: string, notes: string[]): Promise<SmallDisk | undefined> {
  if (options.world.kind === 'deployment') {
    mkdirSync(resultDir)
    notes.push('broker not killed, disk not filled: they belong to the deployment')
    return undefined
  }
  const disk = await mountSmallDisk(resultDir, options.diskMegabytes)
  if (typeof disk !== 'string') return disk
  notes.push(`disk not filled: ${disk}`)
  return undefined
}

interface S3Parts {
  readonly bucket: Bucket | undefined
  readonly copies: Copies | undefined
  readonly settings: Readonly<Record<string, unknown>>
}

async function buildS3({ world, isHit, tag }: RigOptions, base: string, notes: string[]): Promise<S3Parts> {
  if (world.kind === 'private') {
    const standIn = makeStandIn(BUCKET_NAME, join(base, 'bucket'))
    const bucket = await startBucket(standIn.backend, isHit)
    const settings = {
      S3_BUCKET: BUCKET_NAME,
      S3_PREFIX: '',
      S3_ENDPOINT: bucket.url,
      S3_REGION: 'us-east-1',
      S3_FORCE_PATH_STYLE: true,
    }
    return { bucket, copies: copiesInStandIn(standIn, ''), settings }
  }
  const { s3 } = world
  if (s3 === undefined) {
    notes.push('S3 not tortured: the rc names no bucket')
    return { bucket: undefined, copies: undefined, settings: {} }
  }
  const prefix = `${s3.prefix}torture-${tag}/`
  notes.push(`results of this torture stay in the bucket below ${prefix}`)
  const copies = await copiesInBucket({ ...s3, prefix })
  if (!s3.endpoint?.startsWith('http:')) {
    notes.push('S3 not disturbed: S3_ENDPOINT is no http:// address')
    return { bucket: undefined, copies, settings: { S3_PREFIX: prefix } }
  }
  const bucket = await startBucket(makeForwarder(s3.endpoint), isHit)
  return { bucket, copies, settings: { S3_PREFIX: prefix, S3_ENDPOINT: bucket.url } }
}
