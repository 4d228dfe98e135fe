/** `qproducer --batch FILE --max-ready N`: a feed, as its user sees it. */

import { realpath } from 'node:fs/promises'
import { type BatchAccount, submitBatch } from '../batch/batch.ts'
import { type Feed, openFeed } from '../batch/feed.ts'
import { splitLines } from '../batch/lines.ts'
import { FeedError, type FeedErrorCode } from '../batch/state.ts'
import type { PutQueue } from '../queue/queue.ts'
import {
  type BatchOrder,
  type BatchSource,
  describeCount,
  describeEnd,
  describeFailedLine,
  FAILURE_EXIT,
  interruptSignal,
  makeJsonAccount,
  makeRate,
  meter,
  Progress,
  type Rate,
  tellAccepted,
} from './batch.ts'
import { refuse } from './command.ts'
import { complain, EXIT, endWithError, writeOut } from './exit.ts'
import { quote } from './invocation.ts'
import { PRODUCER as PROGRAM } from './qproducer-flags.ts'

/** Between two objects that tell how far it is, with `--json`. */
const TELL_MS = 10_000

export interface FeedOrder extends BatchOrder {
  readonly maxReady: number | undefined
  readonly statePath: string | undefined
  readonly isAnew: boolean
}

const ERROR_EXIT: Record<FeedErrorCode, number> = {
  unreadable: EXIT.noInput,
  corrupt: EXIT.data,
  changed: EXIT.data,
  busy: EXIT.tempFail,
  unwritable: EXIT.cantCreate,
}

/** @returns the exit code */
export async function runFeed(
  connect: () => Promise<PutQueue>,
  source: BatchSource,
  order: FeedOrder,
): Promise<number> {
  const feed = await openOrEnd(source, order)
  try {
    if (feed.isDone) {
      await tellDone(feed, order)
      return EXIT.ok
    }
    await tellStart(feed, order)
    const progress = new Progress(source.bytes, feed.start.offset)
    const account = await putLines(await connect(), feed, progress, order)
    const rate = makeRate(account, progress.end())
    const fault = await feed.finish(account).then(
      () => undefined,
      (error: Error) => error,
    )
    await tellEnd(account, rate, feed, order)
    if (account.failed !== undefined) complain(PROGRAM, describeFailure(account, feed, order))
    else if (fault !== undefined) complain(PROGRAM, fault.message)
    const kind = account.failed?.kind ?? (fault === undefined ? undefined : 'state')
    return kind === undefined ? EXIT.ok : FAILURE_EXIT[kind]
  } finally {
    await feed.close()
  }
}

async function openOrEnd(source: BatchSource, order: FeedOrder): Promise<Feed> {
  const { statePath, isAnew } = order
  if (statePath === undefined && !source.canSeek) {
    refuse(
      PROGRAM,
      `--batch ${order.source} is no regular file: it needs --state FILE, where it is noted how far it came`,
    )
  }
  // By whatever name the file is called, its feed is the same.
  const path = statePath ?? `${await realpath(order.source)}.feed`
  try {
    return await openFeed(source, { statePath: path, isAnew })
  } catch (error) {
    if (!(error instanceof FeedError)) throw error
    return endWithError(PROGRAM, ERROR_EXIT[error.code], error.message)
  }
}

function putLines(queue: PutQueue, feed: Feed, progress: Progress, order: FeedOrder): Promise<BatchAccount> {
  const { maxReady = Number.POSITIVE_INFINITY, put } = order
  let toldMs = performance.now()
  let isFirst = true
  const countWaiting = async () => {
    const { ready, delayed } = await queue.countJobs(put.tube)
    const waiting = ready + delayed
    if (isFirst && waiting >= maxReady) {
      complain(PROGRAM, `${waiting} jobs wait in tube ${put.tube} already: more are put when some are taken`, 'caution')
    }
    isFirst = false
    progress.add(`, ${waiting} waiting`)
    if (order.json && performance.now() - toldMs >= TELL_MS) {
      toldMs = performance.now()
      void writeOut(`${JSON.stringify({ feed: { ...describeFeed(feed, 'going'), waiting } })}\n`)
    }
    return waiting
  }
  return submitBatch(queue, splitLines(meter(feed.chunks, progress), { offset: feed.start.offset }), {
    put,
    defaults: order.defaults,
    signal: interruptSignal(),
    makeUuid: feed.makeUuid,
    linesBefore: feed.start.line,
    onAccepted: (jobs, reached) => {
      feed.advance(jobs, reached)
      tellAccepted(jobs, progress, order)
    },
    makeRoom: () => feed.makeRoom(maxReady, countWaiting),
  })
}

/** For `--json`: one shape, whatever is told. `accepted` counts the jobs of all runs. */
function describeFeed({ statePath: file, accepted, position: { line, offset } }: Feed, state: string): object {
  return { state, file, accepted, line, offset }
}

async function tellDone(feed: Feed, { json }: FeedOrder): Promise<void> {
  const text = `nothing to do: all ${feed.position.line} lines were read before, ${countJobs(feed)} accepted (${feed.statePath}; --anew begins anew)`
  await writeOut(`${json ? JSON.stringify({ feed: describeFeed(feed, 'done') }) : text}\n`)
}

async function tellStart(feed: Feed, { json }: FeedOrder): Promise<void> {
  const { line } = feed.start
  if (json) await writeOut(`${JSON.stringify({ feed: describeFeed(feed, 'started') })}\n`)
  else if (line > 0) await writeOut(`going on behind line ${line}, ${countJobs(feed)} accepted before\n`)
}

async function tellEnd(account: BatchAccount, rate: Rate, feed: Feed, { json }: FeedOrder): Promise<void> {
  const isFinished = account.failed === undefined
  if (json) {
    const state = describeFeed(feed, isFinished ? 'finished' : 'stopped')
    await writeOut(`${JSON.stringify({ ...makeJsonAccount(account, rate), feed: state })}\n`)
    return
  }
  const whole = isFinished ? `finished: ${countJobs(feed)} accepted in all (${feed.statePath})\n` : ''
  await writeOut(`${describeEnd(account, rate)}${whole}`)
}

function countJobs({ accepted }: Feed): string {
  return `${accepted} ${accepted === 1 ? 'job' : 'jobs'}`
}

/** Where it failed, what is not known, and that the same command goes on. */
function describeFailure(account: BatchAccount, feed: Feed, order: FeedOrder): string {
  const { failed, unanswered, lastLine = 0 } = account
  const lines = [describeFailedLine(account, order), describeCount(account)]
  const next = feed.position.line + 1
  const behind = Math.max(lastLine, unanswered?.toLine ?? 0)
  if (behind >= next) {
    lines.push(
      `lines ${next} to ${behind} are put again, with the same uuids: not of all of them it is known that they were accepted`,
    )
  }
  const repaired = failed?.kind === 'line' ? ' when that line is corrected' : ''
  // --anew is done.
  const argv = order.argv.filter((arg) => arg !== '--anew')
  lines.push(`to go on with line ${next}${repaired}: ${[PROGRAM, ...argv].map(quote).join(' ')}`)
  return lines.join('\n')
}
