/**
 * `npm run demo`: a worker, which is the broker and the HTTP server too, on free ports in a temporary folder; puts the
 * forecast of a real series and a drunken sailor, shows what happens, and leaves nothing behind. The programs are those
 * of a deployment, and are called as there.
 *
 *     room, worker -> ready -> producers -> result -> served -> ended
 *
 * From each state a signal, a worker that ends, and a reader of stdout that leaves lead to the last one.
 */

import { constants } from 'node:os'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { COLOR_WORDS, type ColorWhen } from './color.ts'
import { makeEventWriter, openScreen, type Screen, wrap } from './demo/screen.ts'
import { openStage, type Produced, type Stage } from './demo/stage.ts'
import { parseForecast, SAMPLE, writeForecast } from './demo/summary.ts'
import { complain, EXIT, endProgram, ignoreBrokenPipe, SIGNAL_BASE, withoutControls, writeOut } from './exit.ts'
import { quote } from './invocation.ts'

const NAME = 'demo'
const PROJECT = resolve(import.meta.dirname, '..', '..')
const START_MS = 60_000
/** Another program may be given a port between our choice and the worker's start. */
const MOST_STARTS = 3
const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

const FORECAST = ['-a', 'forecast', '-p', `{"sample": "${SAMPLE}", "holdout": 24}`, '--wait']
/** The seed of the README: an infinite loop, an error, and a voyage that ends well. */
const SAILOR = ['-a', 'drunken_sailor', '-p', '{"seed": 40}', '--ttr', '1', '--wait']
/** Needs nothing but Node. */
const OWN_JOB = ['-a', 'forecast', '-p', '{"series": [3, 1, 4, 4, 2, 5, 5, 3, 6, 6, 4, 7]}', '--wait']

interface Flags {
  readonly exit?: boolean
  readonly serve?: boolean
  readonly color: ColorWhen
  readonly httpPort?: number
}

type End =
  | { readonly kind: 'done' }
  | { readonly kind: 'stopped'; readonly wasServing: boolean }
  | { readonly kind: 'fault'; readonly exitCode: number; readonly message: string; readonly isOfStart?: true }

async function main(): Promise<number> {
  ignoreBrokenPipe()
  const flags = parseFlags()
  const stopping = listenForStop()
  const screen = openScreen(flags.color)
  await writeOut(writeTitle(screen))
  for (let starts = 1; ; starts++) {
    const end = await perform(flags, screen, stopping.signal)
    switch (end.kind) {
      case 'done':
        return EXIT.ok
      case 'stopped':
        return end.wasServing ? EXIT.ok : exitCodeOf(stopping.signal)
      case 'fault':
        if (mayBePort(end, flags) && starts < MOST_STARTS) {
          await writeOut('a port was taken meanwhile: once more, on others\n')
          continue
        }
        complain(NAME, end.message)
        return end.exitCode
      default:
        return end satisfies never
    }
  }
}

/** Without S3 nothing else is unavailable to a worker that starts. */
function mayBePort({ isOfStart, exitCode }: End & { kind: 'fault' }, { httpPort }: Flags): boolean {
  return isOfStart === true && exitCode === EXIT.unavailable && httpPort === undefined
}

function parseFlags(): Flags {
  const program = new Command(NAME)
    .description(
      'Shows the whole system at work: starts broker, worker and HTTP server in a temporary folder, has a real series\nforecast and a drunken sailor looked after, shows what happens and what came of it. Leaves nothing behind.',
    )
    .option('--exit', 'end when the result is shown (so it is without a terminal)')
    .option('--serve', 'serve until Ctrl-C or SIGTERM (so it is on a terminal)')
    .addOption(new Option('--color <when>', 'colors').choices(COLOR_WORDS).default('auto'))
    .option('--http-port <n>', 'serve on this port (default: a free one)', parsePort)
    .addHelpText('after', '\nWith npm: npm run demo -- --exit')
    .allowExcessArguments(false)
    .configureOutput({
      outputError: (text) => complain(NAME, `${text.replace(/^error: /, '').trimEnd()}\ntry npm run demo -- --help`),
    })
    .exitOverride()
  try {
    const flags = program.parse().opts<Flags>()
    if (!(flags.exit && flags.serve)) return flags
    complain(NAME, '--exit and --serve do not go together: leave one out')
    return process.exit(EXIT.usage)
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    return process.exit(error.exitCode === 0 ? EXIT.ok : EXIT.usage)
  }
}

function parsePort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0
  if (port < 1 || port > 65_535) throw new InvalidArgumentError('Expected a port, 1 to 65535.')
  return port
}

/** The reason of the signal is the name of the one that came, if any. Further ones hasten nothing: all is being ended. */
function listenForStop(): AbortController {
  const stopping = new AbortController()
  for (const signal of STOP_SIGNALS) process.on(signal, () => stopping.abort(signal))
  // Nobody looks any more.
  process.stdout.on('error', () => stopping.abort())
  return stopping
}

function exitCodeOf({ reason }: AbortSignal): number {
  const number = constants.signals[reason as NodeJS.Signals]
  return number === undefined ? EXIT.ok : SIGNAL_BASE + number
}

function writeTitle(screen: Screen): string {
  const title = 'qworker at work: broker, worker and HTTP server, in a temporary folder.'
  return `${wrap(title, screen.columns())
    .map((line) => screen.paint('bold', line))
    .join('\n')}\n\n`
}

async function perform(flags: Flags, screen: Screen, stop: AbortSignal): Promise<End> {
  const began = performance.now()
  const writeEvent = makeEventWriter(screen)
  const stage = await openStage({
    httpPort: flags.httpPort,
    project: PROJECT,
    print: (told) => void writeOut(`${writeEvent(told, performance.now() - began)}\n`),
    printCommand: (words) => void writeOut(`${screen.paint('dim', '$')} ${quoteAll(words)}\n`),
  }).catch((error: Error) =>
    fault(
      EXIT.cantCreate,
      `no temporary folder can be made: ${error.message}\nset TMPDIR to a folder that is there and may be written to`,
    ),
  )
  if ('kind' in stage) return stage
  try {
    return await play(stage, flags, screen, stop)
  } finally {
    if (stop.aborted) await tellStop(stage, stop, screen)
    await stage.close()
    tellQuietly(stage, `nothing is left: ${stage.room.folder} is removed`)
  }
}

function fault(exitCode: number, message: string): End & { kind: 'fault' } {
  return { kind: 'fault', exitCode, message }
}

function tellQuietly({ live }: Stage, text: string): void {
  live.tell({ uuid: undefined, type: undefined, text, tone: 'quiet' })
}

async function tellStop(stage: Stage, { reason }: AbortSignal, screen: Screen): Promise<void> {
  // The terminal has written ^C.
  if (reason === 'SIGINT' && screen.columns() !== undefined) await writeOut('\n')
  if (reason in constants.signals) tellQuietly(stage, `${reason}: all is ended`)
}

async function play(stage: Stage, flags: Flags, screen: Screen, stop: AbortSignal): Promise<End> {
  const state = { isReady: false, isServing: false }
  const broken = Promise.race([
    aborted(stop).then((): End => ({ kind: 'stopped', wasServing: state.isServing })),
    stage.workerEnded.then((code) => describeWorkerEnd(stage, code, state.isReady, flags)),
  ])
  const patience = new AbortController()
  const late = sleep(START_MS, undefined, { signal: patience.signal }).then(
    () => fault(EXIT.unavailable, `the worker is not ready after ${START_MS / 1000} s; is this machine very busy?`),
    () => undefined,
  )
  const unready = await Promise.race([stage.ready, broken, late])
  patience.abort()
  if (unready !== undefined) return unready
  state.isReady = true
  const played = await Promise.race([Promise.all([stage.produce(SAILOR), stage.produce(FORECAST)]), broken])
  if ('kind' in played) return played
  const failed = played.find(({ exitCode }) => exitCode !== EXIT.ok)
  if (failed !== undefined) return describeFailure(failed)
  const [sailor, forecast] = played
  await writeOut(`\n${await writeForecast(parseForecast(forecast.document), forecast.url, screen)}`)
  await writeOut(`How often the sailor was tried, and why:\n  curl ${sailor.url}/status.json\n\n`)
  if (flags.exit || !(flags.serve || process.stdout.isTTY === true)) return { kind: 'done' }
  state.isServing = true
  await writeOut(writeInvitation(stage, screen))
  return broken
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

function describeWorkerEnd(stage: Stage, code: number, wasReady: boolean, flags: Flags): End {
  const exitCode = code === EXIT.ok || code > SIGNAL_BASE ? EXIT.unavailable : code
  const how = code > SIGNAL_BASE ? `was ended by signal ${code - SIGNAL_BASE}` : `ended with exit code ${code}`
  if (wasReady) return fault(exitCode, `the worker ${how}, and the demo with it; run it again`)
  const next =
    flags.httpPort === undefined
      ? 'what it says is to be mended; then run the demo again'
      : `give another --http-port, or leave it out: a free one is found`
  return {
    ...fault(exitCode, [`the worker ${how}. It said:`, ...stage.complaints, next].join('\n')),
    isOfStart: true,
  }
}

function describeFailure({ exitCode, url, complaints }: Produced): End {
  const where = url === '' ? '' : ` for the job of ${url}`
  return fault(
    EXIT.failed,
    [
      `qproducer ended with exit code ${exitCode}${where}. It said:`,
      ...complaints,
      'run the demo again; on a busy machine a second try may help',
    ].join('\n'),
  )
}

function writeInvitation({ room }: Stage, screen: Screen): string {
  const command = quoteAll(['bin/qproducer', '-c', room.rcFile, ...OWN_JOB])
  return [
    `Put jobs of your own, from another terminal in ${PROJECT}:`,
    `  ${command}`,
    '',
    screen.paint('bold', 'Serving until Ctrl-C.'),
    '',
  ].join('\n')
}

/** As a shell takes it. */
function quoteAll(words: readonly string[]): string {
  return words.map((word) => quote(withoutControls(word))).join(' ')
}

main().then(
  (code) => endProgram(NAME, code),
  (error: unknown) => {
    complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
    process.exit(EXIT.software)
  },
)
