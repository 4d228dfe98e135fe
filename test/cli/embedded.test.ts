import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { lockFolder } from '../../src/broker/lock.ts'
import { openQueue } from '../../src/queue/queue.ts'
import { freePort } from '../support/broker.ts'
import { addRuns, eventsOf, letGo } from '../support/gated.ts'
import { type Installation, install, newUuid, PROJECT, type RunningWorker, until } from '../support/installation.ts'

/** An installation whose workers are the broker; the broker that tests have otherwise is not used. */
async function installEmbedded(env: Record<string, string> = {}) {
  const port = await freePort()
  const home = await install({ CONCURRENCY: '1', BEANSTALK_SERVER: 'embedded', BEANSTALK_PORT: String(port), ...env })
  addRuns(home)
  return { home, port }
}

async function put(port: number, type: string, tube = 'default'): Promise<string> {
  const queue = await openQueue(`beanstalk://127.0.0.1:${port}`)
  const uuid = newUuid()
  const body = Buffer.from(JSON.stringify([{ uuid, type }, {}]))
  await queue.put(body, { tube, priority: 0, delaySeconds: 0, ttrSeconds: 60 })
  queue.close()
  return uuid
}

const isComplete = (home: Installation, uuid: string) => () => home.status(uuid)?.state === 'complete'

/** Of this installation, also those that are not ready yet. */
function findWorkers({ results }: Installation): number[] {
  const isWorker = (pid: number) => {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, 'latin1')
      return command.includes('qworker') && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(results)
    } catch {
      return false
    }
  }
  return readdirSync('/proc').map(Number).filter(Number.isInteger).filter(isWorker)
}

async function kill({ child, exited }: RunningWorker): Promise<void> {
  child.kill('SIGKILL')
  await exited
}

/** A program to its end. */
function run(program: string, args: string[], env: Record<string, string>) {
  return spawnSync(join(PROJECT, 'bin', program), args, {
    env: { PATH: process.env.PATH ?? '', ...env },
    encoding: 'utf8',
    timeout: 60_000,
  })
}

test('a worker with --embedded is the broker too: a producer with the same rc finds it, and the health tells of it', async () => {
  const { home, port } = await installEmbedded({ BEANSTALK_SERVER: 'localhost' })
  const worker = await home.startWorker({}, ['--embedded'])
  expect(eventsOf(worker, 'broker_started')).toMatchObject([{ broker: `127.0.0.1:${port}`, jobs: 0 }])
  const rc = join(home.base, 'rc')
  writeFileSync(rc, `BEANSTALK_SERVER: embedded\nBEANSTALK_PORT: ${port}\nRESULT_BASEURL: ${worker.url}\n`)
  const child = spawn(join(PROJECT, 'bin', 'qproducer'), ['-c', rc, '-a', 'ok', '--wait'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let document = ''
  child.stdout.on('data', (chunk) => {
    document += chunk
  })
  expect(await once(child, 'close')).toEqual([0, null])
  expect(JSON.parse(document)).toMatchObject({ type: 'ok', result: 2 })
  const health = await (await fetch(`${worker.url}healthz`)).json()
  expect(health).toMatchObject({ status: 'ok', broker: { ready: 0, buried: 0, draining: false } })
  expect(await worker.stop()).toBe(0)
})

test('jobs outlive a worker that is the broker and is killed', async () => {
  const { home, port } = await installEmbedded()
  const first = await home.startWorker()
  const inHand = await put(port, 'waits')
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  const waiting = [await put(port, 'ok'), await put(port, 'ok')]
  await kill(first)
  const second = await home.startWorker()
  expect(eventsOf(second, 'broker_started')).toMatchObject([{ jobs: 3 }])
  letGo(home)
  for (const uuid of [inHand, ...waiting]) await until('all are complete', isComplete(home, uuid))
  expect(home.status(inHand)?.attempts.map(({ outcome }) => outcome)).toEqual(['abandoned', 'success'])
})

test.for(['SIGKILL', 'SIGTERM'] as const)(
  'when the worker that is the broker ends by %s another takes over with its jobs, and keeps its own run',
  async (signal) => {
    const { home, port } = await installEmbedded()
    const first = await home.startWorker({ TUBES: 'none' })
    const second = await home.startWorker()
    expect(eventsOf(second, 'broker_found')).toMatchObject([{ broker: `127.0.0.1:${port}` }])
    const uuid = await put(port, 'waits')
    await second.waitFor('the run', ({ event }) => event === 'run_started')
    const other = await put(port, 'ok')
    first.child.kill(signal)
    await first.exited
    expect(await second.waitFor('the succession', ({ event }) => event === 'broker_started')).toMatchObject({ jobs: 2 })
    await second.waitFor('its ticket', ({ event }) => event === 'reservation_regained')
    letGo(home)
    for (const each of [uuid, other]) await until('both are complete', isComplete(home, each))
    expect(home.status(uuid)?.attempts).toHaveLength(1)
  },
)

test('where a broker answers already none is started', async () => {
  const home = await install({ CONCURRENCY: '1', BEANSTALK_SERVER: 'embedded' })
  home.addAlgorithm('ok', 'echo 2')
  const worker = await home.startWorker()
  const uuid = await home.putJob('ok')
  await until('it is complete', isComplete(home, uuid))
  expect(eventsOf(worker, 'broker_started')).toEqual([])
  expect(existsSync(join(home.results, '.state', 'broker'))).toBe(false)
  expect(await worker.stop()).toBe(0)
})

test('a port that something else has, and a journal that cannot be, are told with the next step', async () => {
  const { home, port } = await installEmbedded()
  const taken = createServer((socket) => socket.end('220 mail\r\n')).listen(port, '127.0.0.1')
  await once(taken, 'listening')
  onTestFinished(() => void taken.close())
  await expect(home.startWorker()).rejects.toThrow(
    /worker ended \(69\).*127\.0\.0\.1:\d+ is not beanstalkd .* set BEANSTALK_PORT to a free port/s,
  )
  mkdirSync(join(home.results, '.state'), { recursive: true })
  writeFileSync(join(home.results, '.state', 'broker'), '')
  const free = { BEANSTALK_PORT: String(await freePort()) }
  await expect(home.startWorker(free)).rejects.toThrow(/worker ended \(73\).*the journal folder .*\.state\/broker/s)
  const missing = join(home.base, 'missing')
  await expect(home.startWorker({ ...free, RESULT_BASEDIR: missing })).rejects.toThrow(/worker ended \(73\).*mkdir -p/s)
  expect(existsSync(missing)).toBe(false)
})

test('a worker that starts while another one is about to be the broker waits for it, and USR1 opens no debugger', async () => {
  const { home, port } = await installEmbedded()
  const folder = join(home.results, '.state', 'broker')
  mkdirSync(folder, { recursive: true })
  const unlock = await lockFolder(folder)
  // As one that reads its journal yet.
  let asked = 0
  const silent = createServer(() => asked++).listen(port, '127.0.0.1')
  await once(silent, 'listening')
  const starting = home.startWorker()
  await until('it has looked, and waits', () => asked > 1)
  const [pid] = findWorkers(home)
  process.kill(pid as number, 'SIGUSR1')
  silent.close()
  await unlock()
  const worker = await starting
  expect(worker.said.stderr).not.toMatch(/debugger/i)
  expect(eventsOf(worker, 'broker_started')).toHaveLength(1)
  await until('a job is complete', isComplete(home, await put(port, 'ok')))
})

test('two workers that name two ports for one folder of results are told', async () => {
  const { home } = await installEmbedded()
  await home.startWorker()
  const other = String(await freePort())
  await expect(home.startWorker({ BEANSTALK_PORT: other })).rejects.toThrow(
    new RegExp(
      `worker ended \\(69\\).*another broker keeps its journal in .* give both the same BEANSTALK_PORT \\(this is ${other}\\)`,
      's',
    ),
  )
}, 90_000)

test('USR1 lets the broker take no more jobs, and those that it has run', async () => {
  const { home, port } = await installEmbedded()
  const worker = await home.startWorker()
  const uuid = await put(port, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  worker.child.kill('SIGUSR1')
  await until('the health tells it', async () => {
    const health = (await (await fetch(`${worker.url}healthz`)).json()) as { broker: { draining: boolean } }
    return health.broker.draining
  })
  await expect(put(port, 'ok')).rejects.toThrow(/drain/i)
  letGo(home)
  await until('it is complete', isComplete(home, uuid))
})

test('a reload does not move the broker, and says what needs a restart', async () => {
  const { home, port } = await installEmbedded()
  const rc = join(home.base, 'rc')
  const settings = `BEANSTALK_PORT: ${port}\nRESULT_BASEDIR: ${home.results}\nALGORITHM_DIRS: ${home.algorithms}\n`
  writeFileSync(rc, `BEANSTALK_SERVER: embedded\n${settings}`)
  const worker = await home.startWorker(
    { BEANSTALK_SERVER: '', BEANSTALK_PORT: '', RESULT_BASEDIR: '', ALGORITHM_DIRS: '' },
    ['-c', rc],
  )
  writeFileSync(rc, `BEANSTALK_SERVER: localhost\nBROKER_FSYNC: each\n${settings}`)
  worker.child.kill('SIGHUP')
  const read = await worker.waitFor('the reload', ({ event }) => event === 'config_read')
  expect(read).toMatchObject({ need_restart: expect.arrayContaining(['BEANSTALK_SERVER', 'BROKER_FSYNC']) })
  await until('a job is complete', isComplete(home, await put(port, 'ok')))
})

test('qworker broker serves alone; workers find it and stand by, and its jobs outlive it', async () => {
  const { home, port } = await installEmbedded()
  const settings = { RESULT_BASEDIR: home.results, BEANSTALK_PORT: String(port) }
  const env = { PATH: process.env.PATH ?? '', ...settings }
  const alone = spawn(join(PROJECT, 'bin', 'qworker'), ['broker'], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(alone, 'exit')
  onTestFinished(() => void alone.kill('SIGKILL'))
  expect(String(await once(alone.stdout, 'data'))).toBe(`broker on 127.0.0.1:${port}: 0 jobs in its journal\n`)
  const second = run('qworker', ['broker'], { ...settings, BEANSTALK_PORT: String(await freePort()) })
  expect([second.status, second.stderr]).toEqual([69, expect.stringMatching(/another broker keeps its journal in/)])
  const worker = await home.startWorker()
  expect(eventsOf(worker, 'broker_found')).toHaveLength(1)
  const uuid = await put(port, 'ok', 'later')
  alone.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
  expect(await worker.waitFor('the succession', ({ event }) => event === 'broker_started')).toMatchObject({ jobs: 1 })
  expect(home.status(uuid)).toBeUndefined()
})

test('qworker broker tells what is wrong with its command line and its configuration', () => {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-cli-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const missing = join(dir, 'missing')
  expect(run('qworker', ['broker', '--help'], {})).toMatchObject({ status: 0, stdout: expect.stringContaining('USR1') })
  expect(run('qworker', ['broker', '--prot', '1'], {})).toMatchObject({
    status: 64,
    stderr: expect.stringContaining('--port'),
  })
  expect(run('qworker', ['broker', '-p', 'x'], {})).toMatchObject({
    status: 78,
    stderr: expect.stringContaining('BEANSTALK_PORT'),
  })
  expect(run('qworker', ['broker', '-c', missing], {})).toMatchObject({
    status: 66,
    stderr: expect.stringContaining(missing),
  })
  const refused = run('qworker', ['broker'], { RESULT_BASEDIR: missing })
  expect(refused).toMatchObject({
    status: 73,
    stderr: expect.stringMatching(/ENOENT.*: RESULT_BASEDIR \(.*missing\) must be there/),
  })
  expect(readdirSync(dir)).toEqual([])
})
