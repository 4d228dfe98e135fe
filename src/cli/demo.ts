/**
 * `npm run demo`: broker, worker and HTTP server on free ports in a temporary directory; puts the forecast of a real
 * series and a drunken sailor, shows what happens, and leaves nothing behind. On a terminal it serves until Ctrl-C.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect as openSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Command } from 'commander'
import { algorithmEnvironment } from '../config.ts'
import { freePort } from '../sailor/torture/broker.ts'
import { EXIT, endWithError, ignoreBrokenPipe, writeOut } from './exit.ts'

const BIN = join(import.meta.dirname, '..', '..', 'bin')
const START_MS = 10_000

interface Demo {
  readonly dir: string
  readonly rc: string
  readonly url: string
  readonly children: ChildProcess[]
}

async function main(): Promise<void> {
  ignoreBrokenPipe()
  const program = new Command('demo')
    .description('Shows the whole system at work.')
    .option('--exit', 'end when the jobs are done (the default without a terminal)')
    .parse()
  const stay = process.stdout.isTTY === true && program.opts<{ exit?: boolean }>().exit !== true
  const demo = await prepare()
  const end = endOnSignal(demo)
  try {
    await play(demo)
    if (stay) {
      await writeOut(
        `\nServing ${demo.url}/ until Ctrl-C. Put jobs of your own:\n  bin/qproducer -c ${demo.rc} -a pi -p '{"samples": 1000000}' --wait\n`,
      )
      await end
    }
  } finally {
    await cleanUp(demo)
  }
}

async function prepare(): Promise<Demo> {
  const dir = await mkdtemp(join(tmpdir(), 'qworker-demo-'))
  const [brokerPort, httpPort] = [await freePort(), await freePort()]
  const rc = join(dir, 'qworkerrc')
  const settings = {
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: brokerPort,
    RESULT_BASEDIR: join(dir, 'results'),
    HTTP_PORT: httpPort,
    CONCURRENCY: 2,
    LOG_FORMAT: 'text',
  }
  await writeFile(
    rc,
    Object.entries(settings)
      .map(([key, value]) => `${key}: ${value}\n`)
      .join(''),
  )
  const demo = { dir, rc, url: `http://localhost:${httpPort}`, children: [] as ChildProcess[] }
  try {
    await mkdir(settings.RESULT_BASEDIR)
    await startBroker(demo, brokerPort)
    start(demo, join(BIN, 'qworker'), ['-c', rc], 'inherit')
    return demo
  } catch (error) {
    await cleanUp(demo)
    throw error
  }
}

function start(demo: Demo, program: string, args: string[], stdout: 'inherit' | 'ignore'): ChildProcess {
  // A group of its own: Ctrl-C reaches us alone, and we end our children in order.
  const child = spawn(program, args, {
    env: { ...algorithmEnvironment(), HOME: demo.dir },
    stdio: ['ignore', stdout, 'inherit'],
    detached: true,
  })
  demo.children.push(child)
  return child
}

async function startBroker(demo: Demo, port: number): Promise<void> {
  const broker = start(demo, 'beanstalkd', ['-l', '127.0.0.1', '-p', String(port)], 'ignore')
  const failed = once(broker, 'error').then(([error]) => {
    throw error
  })
  const answers = async () => {
    const deadline = performance.now() + START_MS
    while (performance.now() < deadline) {
      const socket = openSocket(port, '127.0.0.1')
      const open = await once(socket, 'connect').then(
        () => true,
        () => false,
      )
      socket.destroy()
      if (open) return
      await sleep(20)
    }
    throw new Error(`beanstalkd does not answer on port ${port}`)
  }
  await Promise.race([failed, answers()]).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
    throw new Error(
      'beanstalkd is not in PATH: install it (Debian: apt-get install beanstalkd; macOS: brew install beanstalkd) and run the demo again',
    )
  })
}

async function play(demo: Demo): Promise<void> {
  const sailor = produce(demo, ['-a', 'drunken_sailor', '-p', '{"seed": 40}', '--ttr', '1', '--wait'])
  const forecast = await produce(demo, [
    '-a',
    'forecast',
    '-p',
    '{"sample": "co2", "holdout": 24}',
    '--ttr',
    '1m',
    '--wait',
  ])
  const { uuid, result, files } = JSON.parse(forecast) as ForecastDocument
  await sailor
  const rows = result.forecast
    .slice(0, 6)
    .map(
      (row) =>
        `  ${row.date}  ${row.mean.toFixed(1).padStart(6)}   ${row.lower_95.toFixed(1).padStart(6)} to ${row.upper_95.toFixed(1)}`,
    )
  await writeOut(
    [
      '',
      `CO2 at Mauna Loa, the next months in ppm (${result.method}; month, mean, 95 % interval):`,
      ...rows,
      '',
      'The result, with its timestamp, and the plot:',
      `  curl ${demo.url}/${uuid}`,
      ...files.filter(({ name }) => name.endsWith('.svg')).map(({ name }) => `  ${demo.url}/${uuid}/${name}`),
      '',
    ].join('\n'),
  )
}

interface ForecastDocument {
  readonly uuid: string
  readonly result: {
    readonly method: string
    readonly forecast: readonly { date: string; mean: number; lower_95: number; upper_95: number }[]
  }
  readonly files: readonly { readonly name: string }[]
}

async function produce(demo: Demo, args: string[]): Promise<string> {
  await writeOut(
    `$ qproducer -c ${demo.rc} ${args.map((arg) => (/^[\w.-]+$/.test(arg) ? arg : `'${arg}'`)).join(' ')}\n`,
  )
  const child = spawn(join(BIN, 'qproducer'), ['-c', demo.rc, ...args], {
    env: algorithmEnvironment(),
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  let document = ''
  child.stdout.on('data', (chunk) => {
    document += chunk
  })
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`qproducer ${args.join(' ')} ended with ${code}`)
  return document
}

function endOnSignal(demo: Demo): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      resolve()
      // The jobs of a demo that is interrupted in the middle are not waited for.
      void cleanUp(demo).then(() => process.exit(EXIT.interrupted))
    }
    process.once('SIGINT', end)
    process.once('SIGTERM', end)
  })
}

async function cleanUp(demo: Demo): Promise<void> {
  for (const child of demo.children.splice(0).reverse()) {
    if (child.pid === undefined || child.exitCode !== null) continue
    const gone = once(child, 'exit')
    child.kill('SIGTERM')
    child.kill('SIGTERM')
    await gone
  }
  await rm(demo.dir, { recursive: true, force: true, maxRetries: 3 })
}

main().catch((error: unknown) =>
  endWithError('demo', EXIT.unavailable, error instanceof Error ? error.message : String(error)),
)
