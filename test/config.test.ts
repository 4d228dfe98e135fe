import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { parse } from 'yaml'
import { type Config, type ConfigError, type ConfigKey, DEFAULTS, describeConfig, loadConfig } from '../src/config.ts'

const dir = mkdtempSync(join(tmpdir(), 'qworker-config-'))
afterAll(() => rmSync(dir, { recursive: true }))

let files = 0
function rc(text: string | Buffer): string {
  const file = join(dir, `rc${files++}`)
  writeFileSync(file, text)
  return file
}

async function problemsOf(file: string, env = {}): Promise<ConfigError> {
  return loadConfig({ file, env }).then(
    () => expect.unreachable('it was taken'),
    (error: ConfigError) => error,
  )
}

test.each(['qworkerrc', 'qproducerrc'])('etc/%s holds the defaults', async (name) => {
  const file = resolve(import.meta.dirname, '..', 'etc', name)
  const keys = Object.keys(parse(readFileSync(file, 'utf8'))) as ConfigKey[]
  const [shipped, defaults] = await Promise.all([loadConfig({ file, env: {} }), loadConfig({ env: {} })])
  for (const key of keys) expect(shipped[key], key).toEqual(defaults[key])
})

test('every key stands in etc/qworkerrc or etc/qproducerrc', () => {
  const shipped = ['qworkerrc', 'qproducerrc'].flatMap((name) =>
    Object.keys(parse(readFileSync(resolve(import.meta.dirname, '..', 'etc', name), 'utf8'))),
  )
  expect(new Set(shipped)).toEqual(new Set(Object.keys(DEFAULTS)))
})

test('flag comes before environment, environment before file, file before default', async () => {
  const file = rc('TTR: 2\nPRIORITY: 2\nDELAY: 2\n')
  const config = await loadConfig({ file, env: { TTR: '3', PRIORITY: '3' }, flags: { TTR: '4', TUBE: undefined } })
  expect([config.TTR, config.PRIORITY, config.DELAY, config.TUBE]).toEqual([4, 3, 2, 'default'])
  expect(Object.isFrozen(config)).toBe(true)
})

test('the rc file of the ancestor is taken: the port is quoted there', async () => {
  const config = await loadConfig({
    file: rc('BEANSTALK_SERVER: localhost\nBEANSTALK_PORT: "11300"\nRESULT_BASEDIR: /var/tmp/qworker\nGRACE_TIME: 2\n'),
    env: {},
  })
  expect(config).toMatchObject({ BEANSTALK_PORT: 11300, GRACE_TIME: 2 })
})

test('durations, sizes, lists, words and folders are read as people write them', async () => {
  const file = rc(
    'GRACE_TIME: 2m\nMAX_OUTPUT: 2KiB\nTUBES: a, b\nHTTP_PORT: off\nALGORITHM_DIRS: [mine, builtin]\nS3_PREFIX: x\nRESULT_BASEURL: http://h/r/\n',
  )
  const config = await loadConfig({ file, env: {} })
  expect(config).toMatchObject({
    GRACE_TIME: 120,
    MAX_OUTPUT: 2048,
    TUBES: ['a', 'b'],
    HTTP_PORT: 'off',
    S3_PREFIX: 'x/',
    RESULT_BASEURL: 'http://h/r',
  })
  expect(config.ALGORITHM_DIRS).toEqual([join(dir, 'mine'), resolve(import.meta.dirname, '..', 'algorithms')])
})

test('several servers are a YAML list, or text with commas or blanks; one is the text that it always was', async () => {
  const serversIn = async (yaml: string, env = {}) => (await loadConfig({ file: rc(yaml), env })).BEANSTALK_SERVER
  expect(await serversIn('BEANSTALK_SERVER: [a, b:11301, "[::1]:5"]\n')).toEqual(['a', 'b:11301', '[::1]:5'])
  expect(await serversIn('BEANSTALK_SERVER: a, b\n')).toEqual(['a', 'b'])
  expect(await serversIn('BEANSTALK_SERVER: a\n', { BEANSTALK_SERVER: 'b c:1' })).toEqual(['b', 'c:1'])
  expect(await serversIn('BEANSTALK_SERVER: [a]\n')).toBe('a')
  expect(await serversIn('BEANSTALK_SERVER: a:11301\n')).toBe('a:11301')
  const config = await loadConfig({ env: { BEANSTALK_SERVER: 'a,b' } })
  expect(Object.isFrozen(config.BEANSTALK_SERVER)).toBe(true)
  expect(describeConfig(config)).toContain('BEANSTALK_SERVER: ["a","b"]\n')
})

test.each([
  ['[a, "a:11300"]', /^BEANSTALK_SERVER names a:11300 twice \(BEANSTALK_PORT 11300 holds .*\); leave one out$/],
  ['[a, embedded]', /BEANSTALK_SERVER must be a host, host:port .*\(embedded .* goes with no other\); it is "a", "emb/],
  ['"a:x, b"', /\("a:x" has no port from 1 to 65535 behind its colon\); it is "a:x, b"$/],
  ['{a: 1}', /\(it is neither a text nor a list\); it is an object$/],
])('servers %s are refused', async (yaml, message) => {
  const { problems } = await problemsOf(rc(`BEANSTALK_SERVER: ${yaml}\n`))
  expect(problems).toEqual([expect.stringMatching(message)])
})

test('the address of the results follows the port when nobody names one', async () => {
  expect((await loadConfig({ env: { HTTP_PORT: '8080' } })).RESULT_BASEURL).toBe('http://localhost:8080')
})

test('an unknown key is an error that offers the near one', async () => {
  const error = await problemsOf(rc('BEANSTALK_PROT: 1\n'))
  expect(error.problems).toEqual([expect.stringMatching(/unknown key "BEANSTALK_PROT"; did you mean BEANSTALK_PORT\?/)])
})

test('all problems are told at once, each with what came and what is expected', async () => {
  const error = await problemsOf(
    rc('BEANSTALK_PORT: 70000\nTTR: soon\nS3_FORCE_PATH_STYLE: 3\nTUBES: []\nnonsense: 1\n'),
    { MAX_ATTEMPTS: '-1' },
  )
  expect(error.code).toBe('bad_value')
  expect(error.problems).toHaveLength(6)
  expect(error.message).toMatch(/BEANSTALK_PORT must be a port, a whole number from 1 to 65535; it is 70000/)
  expect(error.message).toMatch(/TTR must be a duration.*it is "soon"/)
  expect(error.message).toMatch(/environment variable MAX_ATTEMPTS: MAX_ATTEMPTS must be/)
})

test.each<[string, string | Buffer, ConfigError['code'], RegExp]>([
  ['a tab in YAML', 'A:\n\t- b: [', 'bad_yaml', /bad YAML/],
  ['a list', '- 1\n- 2\n', 'bad_yaml', /must hold lines like KEY: value.*array of 2/],
  ['a key twice', 'TTR: 1\nTTR: 2\n', 'bad_yaml', /unique/i],
  [
    'a bomb of aliases',
    `a: &a [x,x,x,x,x,x,x,x,x]\n${'bcdefgh'
      .split('')
      .map((k, i) => `${k}: &${k} [${Array(9).fill(`*${'abcdefg'[i]}`).join()}]`)
      .join('\n')}\n`,
    'bad_yaml',
    /bad YAML/,
  ],
  ['two megabytes', Buffer.alloc(2 ** 21, 'a'), 'bad_yaml', /no rc file/],
])('an rc file with %s is refused', async (_, text, code, message) => {
  const error = await problemsOf(rc(text))
  expect(error.code).toBe(code)
  expect(error.message).toMatch(message)
})

test('an rc file that is not there is told apart from one that cannot be read', async () => {
  expect(await problemsOf(join(dir, 'none'))).toMatchObject({ code: 'missing_file' })
  expect(await problemsOf(dir)).toMatchObject({ code: 'unreadable_file' })
})

test('secrets are never shown, neither in the dump nor in an error', async () => {
  const config = await loadConfig({ env: { SMTP_PASSWORD: 'tr0ub4dor' } })
  expect(describeConfig(config)).toMatch(/^--- \nBEANSTALK_SERVER: "localhost"\n/)
  expect(describeConfig(config)).toContain('SMTP_PASSWORD: "***"')
  expect((await problemsOf(rc('SMTP_PASSWORD: [tr0ub4dor]\n'))).message).not.toContain('tr0ub4dor')
})

test('every default is taken as it stands', async () => {
  const config = await loadConfig({ env: {}, flags: { ...DEFAULTS } as Partial<Config> })
  expect(config.GRACE_TIME).toBe(DEFAULTS.GRACE_TIME)
})

test('the worker refuses a broken rc with exit 78 and a missing one with 66', () => {
  const bin = resolve(import.meta.dirname, '..', 'bin', 'qworker')
  const run = (file: string) => {
    try {
      execFileSync(bin, ['-c', file], { stdio: 'pipe' })
    } catch (error) {
      return error as { status: number; stderr: Buffer }
    }
    throw new Error('it started')
  }
  expect(run(rc('GRACE_TIM: 2\n'))).toMatchObject({ status: 78 })
  expect(run(join(dir, 'none')).status).toBe(66)
  expect(String(run(rc('GRACE_TIM: 2\n')).stderr)).toMatch(/did you mean GRACE_TIME/)
})

test('an rc file that is nested without end, or has no end, is refused', async () => {
  for (const open of ['[', '{a: ', '- '])
    expect((await problemsOf(rc(open.repeat(15_000)))).problems[0]).toMatch(
      /bad YAML: it is nested more than 64 levels deep$/,
    )
  expect((await problemsOf(rc('#'.repeat(65_537)))).message).toMatch(/is no rc file: it has more than 65536 bytes/)
  const { problems } = await problemsOf(rc('a: 1\n'.repeat(1000)))
  expect([problems.length, problems.at(-1)]).toEqual([11, expect.stringMatching(/and 989 more faults$/)])
})

test('an rc file may come through a pipe', async () => {
  const pipe = join(dir, 'pipe')
  execFileSync('mkfifo', [pipe])
  const writer = spawn('/bin/sh', ['-c', 'printf "GRACE_TIME: 7\\n" > "$1"', 'sh', pipe], { stdio: 'ignore' })
  const [config] = await Promise.all([loadConfig({ file: pipe, env: {} }), once(writer, 'exit')])
  expect(config.GRACE_TIME).toBe(7)
})

test.each([
  ['a pipe that nobody writes', 'silent', 66, /silent: cannot be read \(ETIMEDOUT\)/],
  ['a device without end', '/dev/zero', 78, /\/dev\/zero: is no rc file: it has more than 65536 bytes/],
])('%s is refused as an rc file and as a unit, and nothing hangs', (_, name, exitCode, message) => {
  const file = resolve(dir, name)
  if (name === 'silent') execFileSync('mkfifo', [file])
  const bin = resolve(import.meta.dirname, '..', 'bin', 'qworker')
  const options = { cwd: dir, encoding: 'utf8', timeout: 30_000, killSignal: 'SIGKILL' } as const
  const read = spawnSync(process.execPath, [bin, 'check', '-c', file], options)
  expect(read.stdout).toMatch(message)
  expect(read.status).toBe(exitCode)
  const unit = spawnSync(process.execPath, [bin, 'check', '--unit', file], options)
  expect(unit.stdout).toMatch(/problem {2}unit {7}\S* cannot be read \((ETIMEDOUT|EFBIG)\); name the unit file/)
})

test('a configuration is frozen with its lists, and whole whatever keys are asked for', async () => {
  const config = await loadConfig({ env: {}, keys: [] })
  expect([Object.isFrozen(config), Object.isFrozen(config.TUBES), Object.isFrozen(DEFAULTS.ALGORITHM_DIRS)]).toEqual([
    true,
    true,
    true,
  ])
  expect(config).toEqual(await loadConfig({ env: {} }))
})
