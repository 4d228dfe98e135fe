import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { beforeEach, expect, test } from 'vitest'
import {
  collectOutputs,
  createWorkdir,
  directoryBytes,
  readTail,
  reclaimStreams,
  removeWorkdir,
  SETTINGS_FILE,
  Spares,
  type Workdir,
} from '../../src/run/workdir.ts'
import { openGround, runScript } from './ground.ts'

const isRoot = process.geteuid?.() === 0
let base: string
let workdir: Workdir
beforeEach(async () => {
  base = openGround().dir
  workdir = await createWorkdir(base, 'run', '{}')
})

const leave = (name: string, text = 'x') => writeFileSync(join(workdir.scratch, name), text)

/** As a run does that is not ended and stays within its bounds. */
async function collect(workdir: Workdir, patterns: readonly string[] | undefined) {
  const found = await collectOutputs(workdir, patterns, { maxBytes: 2 ** 30, signal: new AbortController().signal })
  if ('excess' in found) throw new Error(found.excess)
  return found
}

test('a run directory is for its user alone, settings are for their reader alone', async () => {
  const { scratch, path } = await createWorkdir(base, 'other', '[1]', { SMTP_HOST: 'mail.example.org' })
  expect(statSync(path).mode & 0o777).toBe(0o700)
  expect(statSync(scratch).mode & 0o777).toBe(0o700)
  expect(statSync(join(scratch, SETTINGS_FILE)).mode & 0o777).toBe(0o600)
  expect(readFileSync(join(scratch, SETTINGS_FILE), 'utf8')).toBe('{"SMTP_HOST":"mail.example.org"}')
  expect(readFileSync(join(scratch, 'input.json'), 'utf8')).toBe('[1]')
})

test('a run directory that cannot be completed leaves nothing', async () => {
  const settings = {
    toJSON: () => {
      throw new Error('no')
    },
  }
  await expect(createWorkdir(base, 'half', '{}', settings)).rejects.toThrow('no')
  expect(readdirSync(base)).toEqual(['run'])
})

test('all files that do not begin with a dot are published, with their size and digest', async () => {
  leave('b.txt', 'second')
  leave('a.txt', '')
  leave('.hidden')
  leave('.settings.json')
  leave('名前 ü.txt')
  const { outputs, skipped } = await collect(workdir, undefined)
  expect(skipped).toEqual([])
  expect(outputs.map(({ name }) => name)).toEqual(['a.txt', 'b.txt', '名前 ü.txt'])
  expect(outputs[1]).toEqual({
    name: 'b.txt',
    path: join(workdir.scratch, 'b.txt'),
    bytes: 6,
    sha256: createHash('sha256').update('second').digest('hex'),
  })
})

test.each([
  [['*.svg'], ['a.svg', 'b.svg']],
  [
    ['?.svg', 'a.svg'],
    ['a.svg', 'b.svg'],
  ],
  [['*'], ['a', 'a.svg', 'a[1]+(x)$.txt', 'asvg', 'b.svg', '😀.md']],
  [['a[1]+(x)$.txt'], ['a[1]+(x)$.txt']],
  [['?.md'], ['😀.md']],
  [['a.sv'], []],
  [['svg'], []],
  [['*a*'], ['a', 'a.svg', 'a[1]+(x)$.txt', 'asvg']],
  [['**a**'], ['a', 'a.svg', 'a[1]+(x)$.txt', 'asvg']],
  [[], []],
])('patterns %j match %j', async (patterns, names) => {
  for (const name of ['a', 'a.svg', 'b.svg', 'asvg', 'a[1]+(x)$.txt', '😀.md', '.svg']) leave(name)
  const { outputs, skipped } = await collect(workdir, patterns)
  expect(outputs.map(({ name }) => name)).toEqual(names)
  expect(skipped).toEqual([])
})

test('a pattern of many stars takes no time', async () => {
  leave('a'.repeat(255))
  const began = performance.now()
  expect((await collect(workdir, [`${'*a'.repeat(40)}*b`])).outputs).toEqual([])
  expect(performance.now() - began).toBeLessThan(5000)
})

test('what may not be published is skipped with its reason', async () => {
  for (const name of ['result.json', 'status.json', 'stdout.log', 'stderr.log']) leave(name)
  leave('two\nlines')
  leave('\u001b[31mred')
  leave('back\\slash')
  symlinkSync('/etc/passwd', join(workdir.scratch, 'link'))
  symlinkSync('/nowhere', join(workdir.scratch, 'dangling'))
  mkdirSync(join(workdir.scratch, 'folder'))
  spawnSync('mkfifo', [join(workdir.scratch, 'fifo')])
  spawnSync('sh', ['-c', 'touch "$(printf \'\\377\\376\')"'], { cwd: workdir.scratch })
  leave('good')
  const { outputs, skipped } = await collect(workdir, undefined)
  expect(outputs.map(({ name }) => name)).toEqual(['good'])
  const odd = 'the name holds a control character, a backslash, or is not UTF-8'
  expect(Object.fromEntries(skipped.map(({ name, reason }) => [name, reason]))).toEqual({
    'result.json': 'the name is reserved',
    'status.json': 'the name is reserved',
    'stdout.log': 'the name is reserved',
    'stderr.log': 'the name is reserved',
    'two?lines': odd,
    '?[31mred': odd,
    'back\\slash': odd,
    '??': odd,
    link: 'not a regular file',
    dangling: 'not a regular file',
    fifo: 'not a regular file',
    folder: 'a folder: only files at the top of the scratch directory are published',
  })
})

test('a dot file that a pattern names is refused with its reason', async () => {
  leave('.hidden')
  expect((await collect(workdir, ['.hidden'])).skipped).toEqual([
    { name: '.hidden', reason: 'the name begins with a dot' },
  ])
})

test('a scratch directory that its algorithm removed, or put a file in the place of, has no outputs', async () => {
  rmSync(workdir.scratch, { recursive: true })
  expect(await collect(workdir, undefined)).toEqual({ outputs: [], skipped: [] })
  writeFileSync(workdir.scratch, '')
  expect(await collect(workdir, undefined)).toEqual({ outputs: [], skipped: [] })
})

test('the size of a directory is what it takes on the disk, at any depth; links are not followed', async () => {
  mkdirSync(join(workdir.scratch, 'a/b'), { recursive: true })
  const fd = openSync(join(workdir.scratch, 'a/b/sparse'), 'w')
  ftruncateSync(fd, 10 ** 10)
  writeSync(fd, 'x'.repeat(5000))
  closeSync(fd)
  symlinkSync('/', join(workdir.scratch, 'root'))
  spawnSync('sync', [join(workdir.scratch, 'a/b/sparse')])
  const bytes = await directoryBytes(workdir.scratch, 10 ** 9)
  expect(bytes).toBeGreaterThanOrEqual(5000)
  expect(bytes).toBeLessThan(100_000)
  expect(await directoryBytes('/nowhere', 1)).toBe(0)
})

test('a tail is the last bytes, and begins with a whole character', async () => {
  const path = join(base, 'log')
  writeFileSync(path, `${'ä'.repeat(10)}end`)
  expect(await readTail(path, 1000)).toBe(`${'ä'.repeat(10)}end`)
  expect(await readTail(path, 4)).toBe('end')
  expect(await readTail(path, 5)).toBe('äend')
  writeFileSync(path, '')
  expect(await readTail(path, 5)).toBe('')
  await expect(readTail(join(base, 'gone'), 5)).rejects.toThrow('ENOENT')
})

test('the tail of a pipe that nobody writes to is not waited for', async () => {
  spawnSync('mkfifo', [join(base, 'fifo')])
  expect(await readTail(join(base, 'fifo'), 5)).toBe('')
})

test.each([
  ['removed', () => undefined],
  ['replaced by a pipe', () => spawnSync('mkfifo', [workdir.stdout])],
  ['replaced by a link', () => symlinkSync('/etc/passwd', workdir.stdout)],
  ['replaced by a folder', () => mkdirSync(join(workdir.stdout, 'deep'), { recursive: true })],
  ['replaced by another file', () => writeFileSync(workdir.stdout, 'forged')],
])('a stream whose file was %s is what was written to it all the same', async (_, replace) => {
  const fds = [openSync(workdir.stdout, 'a+'), openSync(workdir.stderr, 'a+')] as const
  writeSync(fds[0], 'the truth')
  writeSync(fds[1], 'x'.repeat(20))
  unlinkSync(workdir.stdout)
  replace()
  const stderr = lstatSync(workdir.stderr).ino
  await reclaimStreams(workdir, fds, 10)
  for (const fd of fds) closeSync(fd)
  expect(lstatSync(workdir.stdout).isFile()).toBe(true)
  expect(readFileSync(workdir.stdout, 'utf8')).toBe('the truth')
  expect(readFileSync(workdir.stderr, 'utf8')).toBe('x'.repeat(10))
  expect(lstatSync(workdir.stderr).ino).toBe(stderr)
  expect(lstatSync('/etc/passwd').size).toBeGreaterThan(0)
})

test.each([
  ['removes its directory', 'rm -rf "$PWD"; echo 1'],
  ['removes all of its run', 'cd ..; rm -rf "$PWD"; echo 1'],
  ['puts pipes in the place of its streams', 'rm ../*.log; mkfifo ../stdout.log ../stderr.log; echo 1'],
  ['puts a link in the place of its result', 'ln -sf /etc/passwd ../stdout.log; echo 1'],
])('an algorithm that %s is no fault of the worker, and does not block it', async (_, script) => {
  const report = await runScript(openGround(), `${script}; echo 2 >&2`)
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n', stderrTail: '2\n', outputs: [] })
  expect(readFileSync(report.workdir.stdout, 'utf8')).toBe('1\n')
})

test('removing a run directory takes everything, and is quiet when nothing is there', async () => {
  mkdirSync(join(workdir.scratch, 'cache/deep'), { recursive: true })
  linkSync(workdir.input, join(workdir.scratch, 'cache/deep/file'))
  spawnSync('chmod', ['-R', 'a-w', workdir.scratch])
  symlinkSync('/etc', join(workdir.path, 'etc'))
  await removeWorkdir(workdir)
  await removeWorkdir(workdir)
  expect(existsSync(workdir.path)).toBe(false)
  expect(existsSync('/etc/passwd')).toBe(true)
})

test('outputs are bounded: in number, in length even when sparse, and in time', async () => {
  const signal = new AbortController().signal
  const sparse = join(workdir.scratch, 'sparse')
  writeFileSync(sparse, '')
  truncateSync(sparse, 2 ** 40)
  expect(await collectOutputs(workdir, undefined, { maxBytes: 2 ** 20, signal })).toEqual({
    excess: 'its outputs are longer than 1048576 bytes (MAX_SCRATCH)',
  })
  // Hashing a terabyte of nothing ends when the run is to end.
  const interrupted = await collectOutputs(workdir, undefined, { maxBytes: 2 ** 41, signal: AbortSignal.timeout(100) })
  expect(interrupted).toMatchObject({ outputs: [] })
  unlinkSync(sparse)
  for (let i = 0; i <= 10_000; i++) writeFileSync(join(workdir.scratch, `f${i}`), '')
  expect(await collectOutputs(workdir, undefined, { maxBytes: 2 ** 20, signal })).toEqual({
    excess: expect.stringMatching(/more than 10000 files/),
  })
})

test('a result directory that is gone is not made anew by a run', async () => {
  const gone = join(base, 'not-mounted')
  await expect(createWorkdir(join(gone, '.work'), 'run', '{}')).rejects.toMatchObject({ code: 'ENOENT' })
  expect(existsSync(gone)).toBe(false)
})

test.each<[string, boolean, (path: string) => void]>([
  ['nothing', true, () => undefined],
  ['a file beside its directory', false, (path) => writeFileSync(join(path, 'extra'), 'x')],
  ['a folder beside its directory', false, (path) => mkdirSync(join(path, 'outputs'))],
  ['its folder open to all', false, (path) => chmodSync(path, 0o777)],
  ['its directory open to all', false, (path) => chmodSync(join(path, 'scratch'), 0o777)],
  ['its directory another’s', !isRoot, (path) => isRoot && chownSync(join(path, 'scratch'), 65_534, 0)],
])('a run that leaves %s: that its directory serves again is %s', async (_, serves, change) => {
  const spares = new Spares(base)
  writeFileSync(workdir.stdout, 'x')
  change(workdir.path)
  await removeWorkdir(workdir, spares)
  expect(existsSync(workdir.path)).toBe(false)
  expect(readdirSync(base)).toEqual(serves ? ['spare.1'] : [])
  const next = await createWorkdir(base, 'next', '[]', undefined, undefined, spares)
  expect([readdirSync(next.path), readdirSync(next.scratch)]).toEqual([['scratch'], ['input.json']])
  for (const path of [next.path, next.scratch]) expect(statSync(path)).toMatchObject({ uid: process.geteuid?.() })
  expect([statSync(next.path).mode & 0o7777, statSync(next.scratch).mode & 0o7777]).toEqual([0o700, 0o700])
})
