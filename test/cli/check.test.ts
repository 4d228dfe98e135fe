import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startBroker } from '../../src/broker/broker.ts'
import { freePort } from '../support/broker.ts'
import { type Installation, install, PROJECT, until } from '../support/installation.ts'
import { startS3 } from '../support/s3.ts'

const BIN = join(PROJECT, 'bin', 'qworker')

interface Finding {
  readonly check: string
  readonly level: string
  readonly message: string
  readonly exit_code?: number
}

interface Report {
  readonly code: number | null
  readonly problems: number
  readonly exit_code: number
  readonly findings: readonly Finding[]
}

/** Not spawnSync: some of what is checked lives in this process. */
async function run(args: readonly string[], env: Record<string, string>) {
  const child = spawn(process.execPath, [BIN, 'check', ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (chunk) => {
    stdout += chunk
  })
  child.stderr.on('data', (chunk) => {
    stderr += chunk
  })
  const [code] = await once(child, 'close')
  return { code: code as number | null, stdout, stderr }
}

async function check(env: Record<string, string>, args: readonly string[] = []): Promise<Report> {
  const { code, stdout, stderr } = await run([...args, '--json'], { PATH: process.env.PATH ?? '', ...env })
  expect(stderr).toBe('')
  const report = JSON.parse(stdout)
  expect(report.exit_code).toBe(code)
  return { code, ...report }
}

function of(report: Report, name: string): string[] {
  return report.findings.filter((one) => one.check === name).map(({ level, message }) => `${level}: ${message}`)
}

function envOf(home: Installation, more: Record<string, string> = {}): Record<string, string> {
  return {
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: String(home.broker.port),
    RESULT_BASEDIR: home.results,
    ALGORITHM_DIRS: home.algorithms,
    HTTP_PORT: '0',
    CONCURRENCY: '2',
    ...more,
  }
}

function makeTop(): string {
  const top = mkdtempSync(join(tmpdir(), 'qworker-check-'))
  onTestFinished(() => rmSync(top, { recursive: true, force: true }))
  return top
}

/** Listens, and says nothing. */
async function startSilence(): Promise<number> {
  const server = createServer(() => undefined).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return (server.address() as AddressInfo).port
}

test('a project that was just made has no problem, and the check leaves nothing in it', async () => {
  const dir = join(makeTop(), 'project')
  spawnSync(process.execPath, [BIN, 'init', dir])
  const before = readdirSync(dir, { recursive: true })
  const ports = { BEANSTALK_PORT: String(await freePort()), HTTP_PORT: String(await freePort()) }
  const report = await check(ports, ['-c', join(dir, 'qworkerrc')])
  expect(report).toMatchObject({ code: 0, problems: 0 })
  expect(of(report, 'broker')).toEqual([expect.stringMatching(/^ok: 127\.0\.0\.1:\d+ is free for the worker's own/)])
  expect(of(report, 'algorithms')[0]).toMatch(
    /^ok: 7 can be run: drunken_sailor, drunken_sailor_warm, forecast, hello, mail \(not set: SMTP_/,
  )
  expect(of(report, 'stop')).toEqual([expect.stringMatching(/^ok: DRAIN_TIME 63 s/)])
  expect(readdirSync(dir, { recursive: true })).toEqual(before)
})

test('text has one line for each finding, then their number', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'echo 1')
  const { code, stdout } = await run([], { PATH: process.env.PATH ?? '', ...envOf(home) })
  expect(code).toBe(0)
  const lines = stdout.trimEnd().split('\n')
  expect(lines.at(-1)).toMatch(/^0 problems, \d+ warnings?$/)
  for (const line of lines.slice(0, -1)) expect(line).toMatch(/^(ok|warning|problem) +[a-z0-9]+ +\S/)
})

test('all that is wrong is told at once, each with its remedy', async () => {
  const top = makeTop()
  const http = await startSilence()
  const report = await check(
    {
      BEANSTALK_SERVER: '127.0.0.1',
      BEANSTALK_PORT: String(await freePort()),
      RESULT_BASEDIR: join(top, 'none'),
      ALGORITHM_DIRS: join(top, 'nothing'),
      HTTP_PORT: String(http),
      S3_BUCKET: 'results',
      S3_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
      AWS_ACCESS_KEY_ID: 'x',
      AWS_SECRET_ACCESS_KEY: 'tr0ub4dor',
    },
    ['--unit', join(top, 'no.service')],
  )
  // That of the first problem.
  expect(report).toMatchObject({ code: 73, problems: 6 })
  expect(of(report, 'results')).toEqual([
    expect.stringMatching(/^problem: .*none does not exist; create it with: mkdir/),
  ])
  expect(of(report, 'tracker')).toEqual([expect.stringMatching(/^ok: not looked at/)])
  expect(of(report, 'broker')[0]).toMatch(/^problem: cannot connect to beanstalkd.*start it with "beanstalkd -l/)
  expect(of(report, 'algorithms')[0]).toMatch(/^problem: ALGORITHM_DIRS: folder .*nothing cannot be read/)
  expect(of(report, 's3')[0]).toMatch(/^problem: .*check S3_ENDPOINT, the network/)
  expect(of(report, 'http')[0]).toMatch(/^problem: HTTP_PORT: 127\.0\.0\.1:\d+ is in use by another program/)
  expect(of(report, 'unit')[0]).toMatch(/^problem: .*no\.service cannot be read \(ENOENT\)/)
  expect(JSON.stringify(report)).not.toContain('tr0ub4dor')
  expect(report.findings.filter(({ level }) => level === 'problem').map((one) => one.exit_code)).toEqual([
    73, 69, 78, 69, 69, 66,
  ])
})

test('every problem of the rc file is told with 78, one that is not there with 66, a bad command line with 64', async () => {
  const rc = join(makeTop(), 'rc')
  writeFileSync(rc, 'BEANSTALK_PROT: 1\nHTTP_PORT: many\n')
  const report = await check({}, ['-c', rc])
  expect(report).toMatchObject({ code: 78, problems: 2 })
  expect(of(report, 'config')).toEqual([
    expect.stringMatching(/unknown key "BEANSTALK_PROT"; did you mean BEANSTALK_PORT\?/),
    expect.stringMatching(/HTTP_PORT must be off, or a port/),
    expect.stringMatching(/^ok: nothing else is looked at/),
  ])
  expect(await check({}, ['-c', `${rc}.none`])).toMatchObject({ code: 66, problems: 1 })
  expect(await run(['extra'], {})).toMatchObject({
    code: 64,
    stderr: expect.stringMatching(/try qworker check --help/),
  })
})

test('a running worker is not disturbed, and its own port is in order; that of another installation is not', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const port = String(await freePort())
  const worker = await home.startWorker({ HTTP_PORT: port })
  const report = await check(envOf(home, { HTTP_PORT: port }))
  expect(report).toMatchObject({ code: 0, problems: 0 })
  expect(of(report, 'http')).toEqual([expect.stringMatching(/^ok: .*in use by worker .* of this installation.*: ok$/)])
  expect(of(report, 'tracker')).toEqual(['ok: it is whole; attempts under way: 0, copies that wait for S3: 0'])
  const uuid = await home.putJob('hello')
  await until('the job is done', () => home.result(uuid) !== undefined)
  const other = join(home.base, 'other')
  mkdirSync(other)
  const refused = await check(envOf(home, { HTTP_PORT: port, RESULT_BASEDIR: other }))
  expect(refused.code).toBe(69)
  expect(of(refused, 'http')).toEqual([
    expect.stringMatching(/^problem: .*by worker .* of another RESULT_BASEDIR; set/),
  ])
  expect(await worker.stop()).toBe(0)
  expect(worker.events.filter(({ event }) => /problem|paused|lost/.test(event))).toEqual([])
})

test('a job that waits is left alone', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  await home.putJob('hello')
  const report = await check(envOf(home))
  expect(of(report, 'broker')[0]).toMatch(
    /^ok: version 1\.\S+ answers at .* takes jobs up to 65535 bytes; jobs: 1 ready, 0 reserved/,
  )
  expect([await home.broker.stat('current-jobs-ready'), await home.broker.stat('cmd-reserve-with-timeout')]).toEqual([
    1, 0,
  ])
})

test('a broker that keeps its jobs is in order; one that does not, and one that drains, are warnings', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const place = { host: '127.0.0.1', port: 0, maxJobBytes: 65_535, fsync: 'never' } as const
  const durable = await startBroker({ ...place, journalDir: makeTop() })
  const fleeting = await startBroker(place)
  onTestFinished(async () => void (await Promise.all([durable.close(), fleeting.close()])))
  const told = async (port: number) => of(await check(envOf(home, { BEANSTALK_PORT: String(port) })), 'broker')
  expect(await told(durable.port)).toEqual([expect.stringMatching(/^ok: /)])
  expect(await told(fleeting.port)).toEqual([
    expect.stringMatching(/^ok: /),
    expect.stringMatching(/^warning: .* keeps no binlog: its jobs are lost when it ends; start it with.* -b DIR$/),
  ])
  durable.drain()
  expect(await told(durable.port)).toEqual([
    expect.stringMatching(/^ok: /),
    expect.stringMatching(/^warning: .* drains: it takes no more jobs; start it again/),
  ])
})

test('of several servers each is told on its own, one that hangs or is down beside those that are well', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const [down, silent] = [await freePort(), await startSilence()]
  const servers = [`127.0.0.1:${silent}`, '127.0.0.1', `127.0.0.1:${down}`].join(' ')
  const report = await check(envOf(home, { BEANSTALK_SERVER: servers }))
  const told = of(report, 'broker').filter((line) => !line.startsWith('warning:'))
  expect(told).toEqual([
    expect.stringMatching(new RegExp(`^problem: what answers at 127.0.0.1:${silent} is not beanstalkd`)),
    expect.stringMatching(new RegExp(`^ok: version .* answers at 127.0.0.1:${home.broker.port}, `)),
    expect.stringMatching(new RegExp(`^problem: cannot connect .*:${down} .*"beanstalkd -l 127.0.0.1 -p ${down}"`)),
  ])
  expect(report).toMatchObject({ code: 69, problems: 2 })
})

test('a broker and a bucket that accept and never answer are given up', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const s3 = await startS3()
  s3.mood = 'hangs'
  const report = await check(envOf(home, { ...s3.env, BEANSTALK_PORT: String(await startSilence()) }))
  expect(report).toMatchObject({ code: 69, problems: 2 })
  expect(of(report, 'broker')[0]).toMatch(/^problem: what answers at .* is not beanstalkd \(.*did not answer\)/)
  expect(of(report, 's3')[0]).toMatch(/^problem: .*check S3_ENDPOINT, the network and that the server runs/)
})

test('an HTTP port whose answer has no end is told to be of another program, and is not read on', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  let bytes = 0
  const endless = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.write('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n')
    const pour = () => {
      while (socket.writable && socket.write(' '.repeat(65_536))) bytes += 65_536
    }
    socket.on('drain', pour)
    pour()
  }).listen(0, '127.0.0.1')
  await once(endless, 'listening')
  onTestFinished(() => void endless.close())
  const { port } = endless.address() as AddressInfo
  const report = await check(envOf(home, { HTTP_PORT: String(port) }))
  expect(of(report, 'http')).toEqual([expect.stringMatching(/^problem: HTTP_PORT: .* is in use by another program/)])
  expect(report.code).toBe(69)
  expect(bytes).toBeLessThan(64 * 2 ** 20)
})

test('a bucket is written, read and left as it was, and gives the time', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const s3 = await startS3()
  const report = await check(envOf(home, s3.env))
  expect(report).toMatchObject({ code: 0, problems: 0 })
  expect(of(report, 's3')).toEqual([
    expect.stringMatching(/^ok: an object was written, read, and removed \(bucket results/),
  ])
  expect(of(report, 'clock')).toEqual([expect.stringMatching(/^ok: it is .*, as S3's clock says$/)])
})

test('with an embedded broker: of this installation, of another, none at all, and what is no broker', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  const port = String(await freePort())
  const embedded = envOf(home, { BEANSTALK_SERVER: 'embedded', BEANSTALK_PORT: port })
  const worker = await home.startWorker({ BEANSTALK_SERVER: 'embedded', BEANSTALK_PORT: port })
  const own = await check(embedded)
  expect(own).toMatchObject({ code: 0, problems: 0 })
  expect(of(own, 'broker')).toEqual([expect.stringMatching(/^ok: version /)])
  const elsewhere = await check({ ...embedded, BEANSTALK_PORT: String(await freePort()) })
  expect(of(elsewhere, 'broker')).toEqual([
    expect.stringMatching(
      /^problem: .*but a broker keeps its journal in .*give all workers .* the same BEANSTALK_PORT/,
    ),
  ])
  const other = join(home.base, 'other')
  mkdirSync(other)
  expect(of(await check({ ...embedded, RESULT_BASEDIR: other }), 'broker')[1]).toMatch(
    /^warning: the broker at .* is none of this RESULT_BASEDIR, and is used all the same; .* set BEANSTALK_PORT/,
  )
  await worker.stop()
  expect(
    of(await check(envOf(home, { BEANSTALK_PORT: port, BEANSTALK_SERVER: '' }), ['--embedded']), 'broker'),
  ).toEqual([expect.stringMatching(/^ok: .* is free for the worker's own/)])
  const silent = await check({ ...embedded, BEANSTALK_PORT: String(await startSilence()) })
  expect(silent.code).toBe(69)
  expect(of(silent, 'broker')).toEqual([
    expect.stringMatching(/^problem: .*\(what answers at .*; set BEANSTALK_PORT to a/),
  ])
})

test('algorithms that cannot be run are problems, each with its reason', async () => {
  const home = await install()
  home.addAlgorithm('good', 'cat')
  home.addAlgorithm('lost', '', 'command: [no-such-program-at-all]\n')
  home.addAlgorithm('odd', '', 'comand: [x]\n')
  home.addAlgorithm('ghost', '')
  writeFileSync(join(home.algorithms, 'ghost', 'run.sh'), '#!/no/such/shell\n')
  const report = await check(envOf(home))
  expect(report).toMatchObject({ code: 78, problems: 3 })
  const [usable, ...broken] = of(report, 'algorithms')
  expect(usable).toMatch(/^ok: 1 can be run: good$/)
  expect(broken).toEqual([
    expect.stringMatching(/^problem: algorithm lost: its program "no-such-program-at-all" is not in PATH.*install it/),
    expect.stringMatching(
      /^problem: .*odd\/algorithm\.yaml: unknown key comand; known are .*; its jobs are buried until/,
    ),
    expect.stringMatching(
      /^problem: algorithm ghost: .*: \/no\/such\/shell, which its first line names, is not there; its/,
    ),
  ])
})

test('a tracker that no worker could open is a problem, and is left as it is', async () => {
  const home = await install()
  home.addAlgorithm('hello', 'cat')
  mkdirSync(join(home.results, '.state'), { mode: 0o700 })
  writeFileSync(
    join(home.results, '.state', 'tracker.db'),
    'this is no database, and long enough to be taken for one. '.repeat(50),
  )
  const report = await check(envOf(home))
  expect(report.code).toBe(73)
  expect(of(report, 'tracker')).toEqual([
    expect.stringMatching(/^problem: the tracker .* is damaged or no database.*move it away/),
  ])
  expect(readdirSync(join(home.results, '.state'))).toEqual(['tracker.db'])
})
