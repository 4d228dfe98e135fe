import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { freePort, startBroker, type TestBroker } from '../support/broker.ts'
import { PROJECT } from '../support/installation.ts'

let broker: TestBroker
let dir: string
beforeAll(async () => {
  broker = await startBroker()
  dir = mkdtempSync(join(tmpdir(), 'qworker-cli-'))
  mkdirSync(join(dir, 'results'))
})
afterAll(async () => {
  await broker.stop()
  rmSync(dir, { recursive: true })
})

function qworker(args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(join(PROJECT, 'bin', 'qworker'), args, {
    env: {
      PATH: process.env.PATH ?? '',
      BEANSTALK_SERVER: '127.0.0.1',
      BEANSTALK_PORT: String(broker.port),
      RESULT_BASEDIR: join(dir, 'results'),
      HTTP_PORT: '0',
      ...env,
    },
    encoding: 'utf8',
    timeout: 30_000,
  })
  return { status, stdout, stderr }
}

test('all that is wrong with an installation is told at once, each with its remedy, and no job is touched', async () => {
  const taken = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => taken.once('listening', resolve))
  const { port } = taken.address() as AddressInfo
  const { status, stdout, stderr } = qworker([], {
    BEANSTALK_PORT: String(await freePort()),
    RESULT_BASEDIR: join(dir, 'none'),
    HTTP_PORT: String(port),
    ALGORITHM_DIRS: join(dir, 'nothing'),
    S3_BUCKET: 'results',
    S3_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
    AWS_ACCESS_KEY_ID: 'x',
    AWS_SECRET_ACCESS_KEY: 'tr0ub4dor',
  })
  taken.close()
  expect(status).toBeGreaterThanOrEqual(64)
  expect(stdout).toBe('')
  expect(stderr).toMatch(
    /cannot connect to beanstalkd.*start it with "beanstalkd -l 127\.0\.0\.1 -p \d+", or set BEANSTALK_SERVER/,
  )
  expect(stderr).toMatch(/none.*mkdir -p/)
  expect(stderr).toMatch(/HTTP_PORT: 127\.0\.0\.1:\d+ is in use.*set HTTP_PORT to a free port, or to off/)
  expect(stderr).toMatch(/ALGORITHM_DIRS: folder .*nothing cannot be read/)
  expect(stderr).toMatch(/S3_ENDPOINT|127\.0\.0\.1:\d+.*reach/)
  expect(stderr).not.toMatch(/tr0ub4dor/)
  for (const line of stderr.trim().split('\n')) expect(line).toMatch(/^qworker: /)
})

test('an unreachable broker alone ends with 69, a result folder that is not there with 73', async () => {
  expect(qworker([], { BEANSTALK_PORT: String(await freePort()) }).status).toBe(69)
  expect(qworker([], { RESULT_BASEDIR: join(dir, 'none') }).status).toBe(73)
  writeFileSync(join(dir, 'file'), '')
  const { status, stderr } = qworker([], { RESULT_BASEDIR: join(dir, 'file') })
  expect(status).toBe(73)
  expect(stderr).toMatch(/not a directory/)
})

test.each<[string[], RegExp]>([
  [['--tubes', 'a'], /^qworker: unknown option "--tubes"; did you mean --tube\?\n {2}try qworker --help\n$/],
  [['-j', '0'], /-j takes a number of jobs from 1 to 256, or auto; it is "0"/],
  [['--tube', 'a b'], /--tube takes 1 to 200 of .*; it is "a b"/],
  [['--once', '-j', '3'], /give one of them/],
  [
    ['-v', 'etc/qworkerrc'],
    /^qworker: too many arguments: "etc\/qworkerrc" is not expected\n {2}try qworker --help\n$/,
  ],
])('qworker %j is refused with the expected form', (args, message) => {
  const { status, stderr } = qworker(args)
  expect(status).toBe(64)
  expect(stderr).toMatch(message)
})
