import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { loadConfig } from '../../src/config.ts'
import { freePort } from '../support/broker.ts'
import { PROJECT } from '../support/installation.ts'

const BIN = join(PROJECT, 'bin', 'qworker')
const PATH = '/usr/local/bin:/usr/bin:/bin'

function makeTop(): string {
  const top = mkdtempSync(join(tmpdir(), 'qworker-init-'))
  onTestFinished(() => rmSync(top, { recursive: true, force: true, maxRetries: 5 }))
  return top
}

function init(args: readonly string[], options: { cwd?: string; uid?: number; gid?: number } = {}) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [BIN, 'init', ...args], {
    encoding: 'utf8',
    env: { PATH },
    timeout: 30_000,
    ...options,
  })
  return { status, stdout, stderr }
}

function filesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(dir.length + 1))
    .sort()
}

/** The commands that were printed, which a user would take as they stand. */
function commandsIn(stdout: string): string[] {
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('    '))
    .map((line) => line.trim())
}

function startInShell(command: string, env: Record<string, string>): ChildProcess {
  return spawn('/bin/sh', ['-c', command.replace(' && ', ' && exec ')], { env, stdio: ['ignore', 'pipe', 'pipe'] })
}

async function allOf(child: ChildProcess): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const text = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const)
    child[name]?.on('data', (chunk) => {
      text[name] += chunk
    })
  const [code] = await once(child, 'close')
  return { code: code as number | null, ...text }
}

test('the commands that it prints start a worker and put a job, whatever the folder is called', async () => {
  const dir = join(makeTop(), "it's a project", 'of mine')
  const made = init([dir])
  expect(made).toMatchObject({ status: 0, stderr: '' })
  const [startWorker = '', putJob = '', ...more] = commandsIn(made.stdout)
  expect(more).toEqual([])
  const env = { PATH, BEANSTALK_PORT: String(await freePort()), HTTP_PORT: String(await freePort()) }
  const worker = startInShell(startWorker, { ...env, LOG_FORMAT: 'json', CONCURRENCY: '1' })
  const ended = allOf(worker)
  await new Promise<void>((resolve, reject) => {
    let said = ''
    worker.stdout?.on('data', (chunk) => {
      said += chunk
      if (said.includes('"worker_ready"')) resolve()
    })
    void ended.then(({ stderr }) => reject(new Error(`the worker ended: ${stderr}`)))
  })
  const { code, stdout, stderr } = await allOf(startInShell(putJob, env))
  worker.kill('SIGTERM')
  expect(await ended).toMatchObject({ code: 0, stderr: '' })
  expect(code, stderr).toBe(0)
  const result = JSON.parse(stdout)
  expect(result).toMatchObject({ type: 'hello', version: '1.0', attempt: 1, result: { greeting: 'Hello, you!' } })
  expect(result.files).toEqual([expect.objectContaining({ name: 'greeting.txt' })])
  const folder = join(dir, 'results', result.uuid.slice(0, 2), result.uuid)
  expect(readFileSync(join(folder, 'greeting.txt'), 'utf8')).toBe('Hello, you!\n')
  expect(readFileSync(join(folder, 'stderr.log'), 'utf8')).toBe('attempt 1 of 5\n')
})

test('a project holds what its README says, and its rc files are found from anywhere', async () => {
  const dir = join(makeTop(), 'project')
  expect(init([dir]).status).toBe(0)
  expect(filesBelow(dir)).toEqual([
    'README.md',
    'algorithms/hello/algorithm.yaml',
    'algorithms/hello/hello.mjs',
    'qproducerrc',
    'qworkerrc',
    'results/.gitignore',
  ])
  const readme = readFileSync(join(dir, 'README.md'), 'utf8')
  expect(readme).toContain(`    ${BIN} -c qworkerrc\n`)
  expect(readme).not.toContain('{{')
  const worker = await loadConfig({ file: join(dir, 'qworkerrc'), env: {} })
  const producer = await loadConfig({ file: join(dir, 'qproducerrc'), env: {} })
  expect(worker).toMatchObject({ BEANSTALK_SERVER: 'embedded', RESULT_BASEDIR: join(dir, 'results') })
  expect(worker.ALGORITHM_DIRS[0]).toBe(join(dir, 'algorithms'))
  const { BEANSTALK_SERVER, BEANSTALK_PORT, RESULT_BASEURL } = worker
  expect(producer).toMatchObject({ BEANSTALK_SERVER, BEANSTALK_PORT, RESULT_BASEURL })
  // A worker that is stopped lets a job of the project end.
  expect(worker.DRAIN_TIME).toBeGreaterThan(producer.TTR + worker.GRACE_TIME)
})

test('the algorithm refuses a payload without a name, so that it is never tried again', () => {
  const dir = join(makeTop(), 'project')
  init([dir])
  const program = join(dir, 'algorithms', 'hello', 'hello.mjs')
  for (const input of ['{}', '[]', 'null', '{"name": 7}']) {
    const { status, stderr, stdout } = spawnSync(process.execPath, [program], { input, cwd: dir, encoding: 'utf8' })
    expect({ status, stderr, stdout }).toEqual({
      status: 65,
      stderr: 'name: text is expected, such as {"name": "you"}\n',
      stdout: '',
    })
  }
})

test('an empty folder is filled, also the one that one is in', () => {
  const top = makeTop()
  const dir = join(top, 'empty')
  mkdirSync(dir)
  expect(init(['.'], { cwd: dir })).toMatchObject({ status: 0, stdout: expect.stringContaining(`cd ${dir} && `) })
  expect(existsSync(join(dir, 'qworkerrc'))).toBe(true)
})

test('what is there already is never touched', () => {
  const top = makeTop()
  const dir = join(top, 'mine')
  mkdirSync(dir)
  writeFileSync(join(dir, 'qworkerrc'), 'TUBES: [mine]\n')
  const { status, stdout, stderr } = init([dir])
  expect({ status, stdout }).toEqual({ status: 73, stdout: '' })
  expect(stderr).toMatch(/^qworker init: .*mine is not empty \(qworkerrc\).*name a folder that is not there yet/)
  expect(filesBelow(dir)).toEqual(['qworkerrc'])
  expect(readFileSync(join(dir, 'qworkerrc'), 'utf8')).toBe('TUBES: [mine]\n')
  const again = init([join(dir, 'qworkerrc')])
  expect(again).toMatchObject({ status: 73, stderr: expect.stringMatching(/is there already and is no folder; name/) })
  const below = init([join(dir, 'qworkerrc', 'project')])
  expect(below).toMatchObject({ status: 73, stderr: expect.stringMatching(/what stands above it is no folder/) })
})

test('a parent that may not be written is told, with what to do', () => {
  const top = makeTop()
  chmodSync(top, 0o555)
  const nobody = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}
  const { status, stderr } = init([join(top, 'project')], { cwd: '/', ...nobody })
  chmodSync(top, 0o755)
  expect(stderr).toMatch(/project cannot be made: this user may not write there \(EACCES\); name another folder/)
  expect(status).toBe(73)
})

test('where a file cannot be written, nothing is left of the project', () => {
  const top = makeTop()
  const limited = (dir: string) =>
    spawnSync('/bin/sh', ['-c', 'ulimit -f 1; exec "$@"', 'sh', process.execPath, BIN, 'init', dir], {
      encoding: 'utf8',
      env: { PATH },
    })
  const { status, stderr } = limited(join(top, 'new', 'project'))
  expect(stderr).toMatch(/project cannot be written: there is no room for it \(EFBIG\); free space, and try again/)
  expect(status).toBe(73)
  expect(readdirSync(top)).toEqual([])
  mkdirSync(join(top, 'empty'))
  expect(limited(join(top, 'empty')).status).toBe(73)
  expect(readdirSync(top, { recursive: true })).toEqual(['empty'])
})

test.each<[string[], RegExp]>([
  [[], /missing required argument 'dir'\n {2}try qworker init --help/],
  [['a', 'b'], /too many arguments/],
  [['--force', 'a'], /unknown option "--force"/],
  [[''], /a folder has a name/],
])('init %j is refused with the expected form', (args, message) => {
  const top = makeTop()
  expect(init(args, { cwd: top })).toMatchObject({ status: 64, stdout: '', stderr: expect.stringMatching(message) })
  expect(readdirSync(top)).toEqual([])
})

test('qworker --help names it, and it has a help of its own', () => {
  const { stdout } = spawnSync(process.execPath, [BIN, '--help'], { encoding: 'utf8', env: { PATH } })
  expect(stdout).toMatch(/Commands:\n {2}init DIR /)
  expect(init(['--help'])).toMatchObject({ status: 0, stdout: expect.stringMatching(/Nothing is overwritten/) })
})
