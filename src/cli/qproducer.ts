/** `qproducer`: puts jobs into the queue, one or many, and follows one to its end if asked to. */

import { createReadStream } from 'node:fs'
import {
  type Config,
  ConfigError,
  type ConfigKey,
  describeConfig,
  loadConfig,
  PRODUCER_KEYS,
  terminalEnvironment,
} from '../config.ts'
import { parseDuration } from '../job/duration.ts'
import { describe, encodePackage, PackageError, type WorkPackage } from '../job/package.ts'
import { makePackage, payloadFromText, submit } from '../producer.ts'
import { isTubeName, openQueue, type PutOptions, type PutQueue, QueueError, type Ticket } from '../queue/queue.ts'
import { didYouMean } from '../report/suggestion.ts'
import { listAlgorithmNames } from './algorithm-names.ts'
import { brokerAddress, brokerAdvice, isEmbedded, serversOf } from './broker.ts'
import { decideColors } from './color.ts'
import { parseCommandLine, refuse } from './command.ts'
import { complain, EXIT, endProgram, endWithError, ignoreBrokenPipe, isUnloadable, writeOut } from './exit.ts'
import { readPlainly } from './option-table.ts'
import { makeProgram, OPTIONS, PRODUCER as PROGRAM, type ProducerFlags } from './qproducer-flags.ts'

/** Largest payload that is read; beanstalkd's own limit (-z) ends at 1 GiB, and nobody sends that through a queue. */
const MAX_PAYLOAD_BYTES = 256 * 2 ** 20

/** A command line that makes sense. */
interface Order {
  readonly type: string | undefined
  readonly uuid: string | undefined
  readonly maxAttempts: number | undefined
  readonly tags: Readonly<Record<string, string>> | undefined
  readonly timeoutSeconds: number | undefined
  /** what goes above the configuration */
  readonly settings: Partial<Record<ConfigKey, unknown>>
}

/** One accepted job. */
interface Accepted {
  readonly workPackage: WorkPackage
  readonly put: PutOptions
  readonly ticket: Ticket
  readonly bytes: number
  readonly url: string
}

function usage(message: string): never {
  return refuse(PROGRAM, message)
}

/** Pairs that contradict each other, with the reason. */
const CONFLICTS: readonly [keyof ProducerFlags, keyof ProducerFlags, string][] = [
  ['batch', 'payload', 'each line of the batch is a payload'],
  ['batch', 'uuid', 'each job needs a uuid of its own'],
  ['batch', 'wait', 'only a single job can be waited for'],
]

function checkFlags(flags: ProducerFlags): Order {
  for (const [one, other, reason] of CONFLICTS) {
    if (flags[one] !== undefined && flags[other] !== undefined) {
      usage(`--${one} and --${other} do not go together: ${reason}; leave one out`)
    }
  }
  checkFeedFlags(flags)
  if (flags.timeout !== undefined && !flags.wait)
    usage('--timeout goes only with --wait: add --wait, or leave --timeout out')
  if (flags.algorithm === undefined && flags.batch === undefined) {
    usage('no algorithm is named: give -a TYPE (and -p PAYLOAD), or --batch FILE')
  }
  const order = {
    type: flags.algorithm,
    uuid: flags.uuid,
    maxAttempts:
      flags.maxAttempts === undefined ? undefined : parseNumber('--max-attempts', flags.maxAttempts, 1, 1000),
    tags: flags.tag === undefined ? undefined : parseTags(flags.tag),
    timeoutSeconds: flags.timeout === undefined ? undefined : parseTime('--timeout', flags.timeout),
    settings: makeSettings(flags),
  }
  try {
    // What stands in the header is checked before the payload is read and the broker asked.
    encodePackage(makePackage({ ...order, type: order.type ?? 'any', payloadJson: '{}' }))
  } catch (error) {
    if (error instanceof PackageError) usage(error.message)
    throw error
  }
  return order
}

function checkFeedFlags({ batch, maxReady, state, anew }: ProducerFlags): void {
  const isFeed = maxReady !== undefined || state !== undefined
  if (anew && !isFeed) usage('--anew goes only with --max-ready or --state: a batch without them begins anew always')
  const flag = maxReady === undefined ? '--state' : '--max-ready'
  if (isFeed && batch === undefined) usage(`${flag} goes only with --batch FILE: add it, or leave ${flag} out`)
  if (maxReady !== undefined) parseNumber('--max-ready', maxReady, 1, 1_000_000_000)
  if (state === '') usage('--state names a file; it is empty')
  if (isFeed && batch === '-' && state === undefined) {
    usage('--max-ready with --batch - needs --state FILE, where it is noted how far it came')
  }
}

function makeSettings(flags: ProducerFlags): Partial<Record<ConfigKey, unknown>> {
  const { priority, delay, ttr, tube } = flags
  if (tube !== undefined && !isTubeName(tube)) {
    usage(`--tube takes 1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -; it is ${describe(tube)}`)
  }
  const ttrSeconds = ttr === undefined ? undefined : parseTime('--ttr', ttr)
  if (ttrSeconds === 0) usage('--ttr must be at least 1 s: beanstalkd would make 1 of 0')
  return {
    ...(tube === undefined ? {} : { TUBE: tube }),
    ...(priority === undefined ? {} : { PRIORITY: parseNumber('--priority', priority, 0, 4_294_967_295) }),
    ...(delay === undefined ? {} : { DELAY: parseTime('--delay', delay) }),
    ...(ttrSeconds === undefined ? {} : { TTR: ttrSeconds }),
  }
}

function parseNumber(flag: string, text: string, min: number, max: number): number {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN
  if (value >= min && value <= max) return value
  return usage(`${flag} must be a whole number from ${min} to ${max}; it is ${describe(text)}`)
}

function parseTime(flag: string, text: string): number {
  try {
    return parseDuration(text)
  } catch (error) {
    if (error instanceof RangeError) return usage(`${flag}: ${error.message}`)
    throw error
  }
}

function parseTags(tags: readonly string[]): Record<string, string> {
  const pairs = new Map<string, string>()
  for (const tag of tags) {
    const at = tag.indexOf('=')
    if (at < 1) usage(`--tag takes key=value; it is ${describe(tag)}`)
    const key = tag.slice(0, at)
    if (pairs.has(key)) usage(`--tag ${key} is given twice; a job has one value for each`)
    pairs.set(key, tag.slice(at + 1))
  }
  return Object.fromEntries(pairs)
}

async function readConfig(flags: ProducerFlags, order: Order): Promise<{ config: Config; dump: string }> {
  decideColors(flags.color, terminalEnvironment())
  try {
    const config = await loadConfig({ file: flags.config, flags: order.settings, keys: PRODUCER_KEYS })
    return { config, dump: describeConfig(config, PRODUCER_KEYS) }
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const isMissing = error.code === 'missing_file' || error.code === 'unreadable_file'
    return endWithError(PROGRAM, isMissing ? EXIT.noInput : EXIT.config, error.problems.join('\n'))
  }
}

async function readPayload(payload: string | undefined): Promise<string> {
  if (payload === undefined) return '{}'
  if (payload === '-') {
    const text = decode(await readAll(process.stdin, 'stdin'), 'stdin')
    // What should have written it died, most likely; a job with an empty payload is asked for by {}.
    if (text.trim() === '') endWithError(PROGRAM, EXIT.data, 'stdin is empty: write a payload to it ({} for none)')
    return payloadFromText(text)
  }
  if (!payload.startsWith('@')) return payloadFromText(payload)
  const name = payload.slice(1)
  try {
    return payloadFromText(decode(await readAll(createReadStream(name), name), name))
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (error instanceof PackageError || code === undefined) throw error
    const reason = code === 'ENOENT' || code === 'ENOTDIR' ? 'no such file' : `cannot be read (${code})`
    return endWithError(
      PROGRAM,
      EXIT.noInput,
      `payload file ${name}: ${reason}; -p @FILE names a file that this user may read`,
    )
  }
}

async function readAll(stream: AsyncIterable<Buffer>, name: string): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of stream) {
    bytes += chunk.length
    if (bytes > MAX_PAYLOAD_BYTES) {
      endWithError(
        PROGRAM,
        EXIT.data,
        `the payload from ${name} has more than ${MAX_PAYLOAD_BYTES} bytes: put the data on a URL and send that`,
      )
    }
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function decode(bytes: Buffer, name: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new PackageError(
      'not_utf8',
      `the payload from ${name} (${bytes.length} bytes) is not UTF-8 text: encode it (base64), or put it on a URL and send that`,
      { cause },
    )
  }
}

/**
 * @param key the uuid of the one job that is to be put; undefined for many jobs
 * @throws QueueError
 */
async function openPutQueue(config: Config, key: string | undefined): Promise<PutQueue> {
  const [server, ...others] = serversOf(config)
  if (others.length === 0) return openQueue(server.url)
  const { makeSpread } = await import('../queue/spread.ts')
  const tell = (message: string) => complain(PROGRAM, message, 'caution')
  const spread = makeSpread({ servers: [server, ...others], tell })
  await spread.open(key)
  return spread
}

async function connect(config: Config, key?: string): Promise<PutQueue> {
  try {
    return await openPutQueue(config, key)
  } catch (error) {
    if (!(error instanceof QueueError)) throw error
    return endWithError(PROGRAM, EXIT.unavailable, brokerAdvice(config, error))
  }
}

async function main(argv: readonly string[]): Promise<number> {
  const flags = readPlainly<ProducerFlags>(OPTIONS, argv) ?? (await parseCommandLine(makeProgram(), argv))
  const order = checkFlags(flags)
  const { config, dump } = await readConfig(flags, order)
  // With --json and --wait stdout belongs to the document.
  const say = flags.json || flags.wait ? sayOnStderr : sayOnStdout
  if (flags.verbose) say(`Using this configuration:\n${dump.trimEnd()}\n---`)
  const put: PutOptions = {
    tube: config.TUBE,
    priority: config.PRIORITY,
    delaySeconds: config.DELAY,
    ttrSeconds: config.TTR,
  }
  await hintAtAlgorithm(flags)
  const address = isEmbedded(config) ? `${config.BEANSTALK_SERVER}:${config.BEANSTALK_PORT}` : brokerAddress(config)
  const connecting = `Starting producer, connecting to ${address}`
  if (flags.batch !== undefined) {
    const connectAloud = () => {
      if (flags.verbose) say(connecting)
      return connect(config)
    }
    return putBatch(flags.batch, flags, order, { put, argv, baseUrl: config.RESULT_BASEURL, connectAloud })
  }
  const workPackage = makePackage({
    ...order,
    type: order.type ?? '',
    payloadJson: await readPayload(flags.payload),
  })
  if (flags.verbose) say(connecting)
  const queue = await connect(config, workPackage.header.uuid)
  const { ticket, bytes } = await submit(queue, workPackage, put)
  const accepted = { workPackage, put, ticket, bytes, url: `${config.RESULT_BASEURL}/${workPackage.header.uuid}` }
  if (!flags.json || flags.verbose) {
    say(`generated work package: ${encodePackage(workPackage)}`)
    if (flags.verbose) say(`ticket: ${ticket}`)
    say(`result URL: ${accepted.url}`)
  }
  if (flags.wait) return follow(accepted, queue, config, order.timeoutSeconds, flags.json ?? false)
  if (flags.json) await writeOut(`${JSON.stringify(describeAccepted(accepted))}\n`)
  return EXIT.ok
}

/** What a batch takes from the configuration. */
interface Road {
  readonly put: PutOptions
  readonly baseUrl: string
  readonly connectAloud: () => Promise<PutQueue>
  readonly argv: readonly string[]
}

async function putBatch(
  file: string,
  flags: ProducerFlags,
  order: Order,
  { put, argv, baseUrl, connectAloud }: Road,
): Promise<number> {
  const { openBatchSource, runBatch } = await import('./batch.ts')
  const source = await openBatchSource(file)
  const batch = {
    source: file,
    put,
    defaults: order,
    json: flags.json ?? false,
    verbose: flags.verbose ?? false,
    baseUrl,
    argv,
  }
  if (flags.maxReady === undefined && flags.state === undefined) return runBatch(await connectAloud(), source, batch)
  const { runFeed } = await import('./feed.ts')
  return runFeed(connectAloud, source, {
    ...batch,
    maxReady: flags.maxReady === undefined ? undefined : Number(flags.maxReady),
    statePath: flags.state,
    isAnew: flags.anew ?? false,
  })
}

/** The worker may be elsewhere, and know what is not known here: a job is put all the same. */
async function hintAtAlgorithm({ algorithm, config: file }: ProducerFlags): Promise<void> {
  if (algorithm === undefined) return
  const names = await listAlgorithmNames({ file })
  if (names.includes(algorithm)) return
  const hint = didYouMean(algorithm, names)
  if (hint !== '') complain(PROGRAM, `no algorithm ${algorithm} here${hint} The job is put all the same`, 'caution')
}

function sayOnStdout(text: string): void {
  void writeOut(`${text}\n`)
}

function sayOnStderr(text: string): void {
  process.stderr.write(`${text}\n`)
}

function describeAccepted({ workPackage, put, ticket, bytes, url }: Accepted): Record<string, unknown> {
  const { uuid, type } = workPackage.header
  return {
    uuid,
    type,
    tube: put.tube,
    ticket,
    priority: put.priority,
    delay_seconds: put.delaySeconds,
    ttr_seconds: put.ttrSeconds,
    bytes,
    url,
  }
}

async function follow(
  accepted: Accepted,
  first: PutQueue,
  config: Config,
  timeoutSeconds: number | undefined,
  json: boolean,
): Promise<number> {
  const { describeEnd, waitForEnd } = await import('./wait.ts')
  const { uuid } = accepted.workPackage.header
  const [server, ...others] = serversOf(config)
  let queue = first
  const ticketState = async () => {
    try {
      return await queue.ticketState(accepted.ticket)
    } catch {
      // The broker was restarted, perhaps: once more on a new connection. Those to several servers are renewed as needed.
      if (others.length === 0) {
        queue.close()
        queue = await openQueue(server.url)
      }
      return queue.ticketState(accepted.ticket)
    }
  }
  const interrupt = new AbortController()
  // A second Ctrl-C ends the program in the usual way.
  process.once('SIGINT', () => interrupt.abort())
  const onTerminal = process.stderr.isTTY === true
  const clear = () => onTerminal && process.stderr.write('\r\x1b[2K')
  const end = await waitForEnd({
    uuid,
    url: accepted.url,
    ticketState,
    timeoutSeconds,
    signal: interrupt.signal,
    warn: (message) => {
      clear()
      complain(PROGRAM, message, 'caution')
    },
    show: (line) => onTerminal && process.stderr.write(`\r\x1b[2K${line}`),
  })
  clear()
  const told = describeEnd(end, accepted.url)
  const head = JSON.stringify(describeAccepted(accepted)).slice(0, -1)
  const text = json ? `${head},${told.jsonMembers}}\n` : told.document
  if (text !== undefined) await writeOut(text.endsWith('\n') ? text : `${text}\n`)
  if (told.message !== undefined) complain(PROGRAM, told.message)
  return told.exitCode
}

async function run(): Promise<void> {
  ignoreBrokenPipe()
  try {
    await endProgram(PROGRAM, await main(process.argv.slice(2)))
  } catch (error) {
    if (error instanceof PackageError) endWithError(PROGRAM, EXIT.data, error.message)
    if (error instanceof QueueError) {
      endWithError(PROGRAM, error.code === 'too_big' ? EXIT.data : EXIT.unavailable, describePutFailure(error))
    }
    if (isUnloadable(error)) throw error
    endWithError(PROGRAM, EXIT.software, `unexpected fault: ${error instanceof Error ? error.stack : String(error)}`)
  }
}

function describePutFailure(error: QueueError): string {
  switch (error.code) {
    case 'too_big':
      return error.message
    case 'connection_lost':
      return `${error.message}: it is not known whether the broker took the job`
    default:
      return `the broker did not take the job: ${error.message}`
  }
}

/** For `bin/`: rejected only when a part of the program cannot be loaded. */
export const ended = run()
