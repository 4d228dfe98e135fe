import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeEach, expect, test } from 'vitest'
import { SHAREABLE } from '../../src/config.ts'
import { commandFor, findAlgorithms, resolveProgram } from '../../src/run/algorithm.ts'
import { makeAlgorithm, openGround, PATH, PROJECT } from './ground.ts'

let dir: string
beforeEach(() => {
  dir = openGround().dir
})

function write(folder: string, manifest: string, base = dir): string {
  mkdirSync(join(base, folder), { recursive: true })
  writeFileSync(join(base, folder, 'algorithm.yaml'), manifest)
  return join(base, folder)
}

const find = (...dirs: string[]) =>
  findAlgorithms({ dirs: dirs.length === 0 ? [dir] : dirs, path: PATH, shareable: ['SMTP_HOST', 'SMTP_PORT'] })

test('every algorithm that we ship can be run', async () => {
  const { algorithms, broken, problems } = await findAlgorithms({
    dirs: [join(PROJECT, 'algorithms')],
    path: PATH,
    shareable: SHAREABLE,
  })
  expect([...broken.values(), ...problems]).toEqual([])
  expect([...algorithms.keys()].sort()).toEqual([
    ...['drunken_sailor', 'drunken_sailor_warm', 'forecast', 'mail', 'pi', 'sleep'],
  ])
  for (const { description, version } of algorithms.values()) {
    expect(description).not.toBe('')
    expect(version).toMatch(/^\d+\.\d+\.\d+$/)
  }
})

test('a command is enough; all else has a default', async () => {
  const folder = write('plain', 'command: [sh, -c, "exit 0"]\n')
  const { algorithms, broken, problems } = await find()
  expect([...broken, ...problems]).toEqual([])
  expect(algorithms.get('plain')).toEqual({
    ...makeAlgorithm(folder, { command: ['sh', '-c', 'exit 0'] }),
    name: 'plain',
    version: '0',
  })
})

test('a manifest may say everything', async () => {
  write(
    'folder',
    `name: full.name-1_0
version: 2
description: does it
command: [sh]
outputs: ["*.svg", data.csv]
output: json
max_attempts: 3
permanent_exits: [78, 100]
env: {MODEL: ets, LEVEL: 3, DEEP: true}
settings: [SMTP_HOST]
`,
  )
  const { algorithms } = await find()
  expect(algorithms.get('full.name-1_0')).toMatchObject({
    version: '2',
    outputs: ['*.svg', 'data.csv'],
    output: 'json',
    maxAttempts: 3,
    permanentExits: [78, 100],
    env: { MODEL: 'ets', LEVEL: '3', DEEP: 'true' },
    settings: ['SMTP_HOST'],
  })
})

test('a warm algorithm serves 1000 jobs by one process, or as many as it says', async () => {
  write('few', 'command: [sh]\nmode: warm\nmax_jobs: 5')
  write('many', 'command: [sh]\nmode: warm\noutput: json\nlimits: {open_files: 64}')
  write('once', 'command: [sh]\nmode: once')
  const { algorithms } = await find()
  expect(algorithms.get('few')?.warm).toEqual({ maxJobs: 5 })
  expect(algorithms.get('many')?.warm).toEqual({ maxJobs: 1000 })
  expect(algorithms.get('once')?.warm).toBeUndefined()
})

test.each([
  [
    'an unknown key',
    'command: [sh]\ncomand: x',
    /unknown key comand; known are name, version, .*, settings, mode, max_jobs, limits, user$/,
  ],
  ['no command', 'name: a', /command is missing$/],
  ['an empty file', '', /must hold lines like key: value$/],
  ['a list', '- command', /must hold lines like key: value$/],
  ['a command that is text', 'command: sh -c true', /command must be a list: the program and its arguments/],
  ['an empty command', 'command: []', /command must have at least one element/],
  ['an empty program', 'command: [""]', /command must begin with a program/],
  ['a number in the command', 'command: [sh, 5]', /command\.1 must be text; in quotes/],
  ['a NUL byte in the command', 'command: [sh, "a\\0b"]', /command\.1 must not hold a NUL byte/],
  ['a path among the outputs', 'command: [sh]\noutputs: [a/b]', /outputs\.0 must be names or patterns/],
  ['outputs that are text', 'command: [sh]\noutputs: "*"', /outputs must be a list/],
  ['another output', 'command: [sh]\noutput: xml', /output must be auto, json or text/],
  ['no attempts', 'command: [sh]\nmax_attempts: 0', /max_attempts must be a whole number from 1 to 1000/],
  ['attempts in words', 'command: [sh]\nmax_attempts: many', /max_attempts must be a whole number from 1 to 1000/],
  ['exit 0', 'command: [sh]\npermanent_exits: [0]', /permanent_exits\.0 must be an exit code from 1 to 255/],
  ['one exit', 'command: [sh]\npermanent_exits: 78', /permanent_exits must be a list of exit codes/],
  ['a variable of ours', 'command: [sh]\nenv: {QWORKER_UUID: x}', /env\.QWORKER_UUID must be names of variables/],
  ['a variable with a blank', 'command: [sh]\nenv: {"A B": x}', /env\.A B must be names of variables/],
  ['a variable with a NUL byte', 'command: [sh]\nenv: {A: "\\0"}', /env\.A must not hold a NUL byte/],
  ['one variable', 'command: [sh]\nenv: A=1', /env must be lines like NAME: value/],
  ['a secret', 'command: [sh]\nsettings: [S3_BUCKET]', /"S3_BUCKET" is not handed .*: SMTP_HOST, SMTP_PORT$/],
  ['a bad name', 'command: [sh]\nname: "../x"', /name must be 1 to 64 of a-z/],
  ['a name that is a number', 'command: [sh]\nname: 5', /name must be text/],
  ['a description that is a list', 'command: [sh]\ndescription: []', /description must be text/],
  ['an unknown limit', 'command: [sh]\nlimits: {ram: 1}', /unknown key limits\.ram; known are memory, cpu_seconds, /],
  ['limits that are text', 'command: [sh]\nlimits: none', /limits must hold lines like memory: 512MiB$/],
  ['memory in megabytes', 'command: [sh]\nlimits: {memory: 64MB}', /limits\.memory must be .* such as .*64MiB or 1GiB/],
  ['no memory', 'command: [sh]\nlimits: {memory: 1MiB}', /limits\.memory must be .* at least 4 MiB$/],
  ['half a second', 'command: [sh]\nlimits: {cpu_seconds: 0.5}', /limits\.cpu_seconds must be a whole number from 1/],
  ['no descriptors', 'command: [sh]\nlimits: {open_files: 3}', /limits\.open_files must be a whole number from 8/],
  ['no file size', 'command: [sh]\nlimits: {file_size: 0}', /limits\.file_size must be .* at least 1 KiB/],
  ['no process', 'command: [sh]\nlimits: {processes: 0}', /limits\.processes must be a whole number from 1/],
  ['another mode', 'command: [sh]\nmode: hot', /mode must be once or warm/],
  ['jobs of a process for one', 'command: [sh]\nmax_jobs: 5', /max_jobs is for mode: warm/],
  ['no jobs', 'command: [sh]\nmode: warm\nmax_jobs: 0', /max_jobs must be a whole number from 1 to/],
  ['one job for many', 'command: [sh, "{uuid}"]\nmode: warm', /command must not have \{uuid\} with mode: warm/],
  ['text from a warm one', 'command: [sh]\nmode: warm\noutput: text', /output must not be text with mode: warm/],
  ['its seconds', 'command: [sh]\nmode: warm\nlimits: {cpu_seconds: 9}', /limits\.cpu_seconds must not be given with/],
  ['a user that is a number', 'command: [sh]\nuser: "0"', /user must be the name of a user, not a number/],
  ['a user that looks like an option', 'command: [sh]\nuser: -u', /user must be the name of a user/],
  ['a user that is not there', 'command: [sh]\nuser: no-such-one', /user: no-such-one is no user of this machine$/],
  ['YAML that is none', 'command: [sh', /algorithm\.yaml: .*line 1/],
  ['a key that stands twice', 'command: [sh]\ncommand: [sh]', /algorithm\.yaml: Map keys must be unique/],
  ['two documents', 'command: [sh]\n---\ncommand: [sh]', /algorithm\.yaml: .*multiple documents/],
  ['a billion laughs', `a: &a [x,x]\nb: [${'*a,'.repeat(50)}]`, /algorithm\.yaml: /],
  [
    'a program that is not in PATH',
    'command: [no-such-thing]',
    /algorithm x: its program "no-such-thing" is not in PATH/,
  ],
  ['a program that is not there', 'command: [./gone]', /algorithm x: its program \/.*\/x\/gone is not there/],
  ['a program that is a folder', 'command: ["{dir}/.."]', /is no file/],
  [
    'an argument that is not there',
    'command: [sh, "{dir}/gone.sh"]',
    /x\/gone\.sh, an argument of its command, is not/,
  ],
])('%s is told, and the algorithm is not used', async (_, manifest, words) => {
  write('x', manifest)
  const { algorithms, broken, problems } = await find()
  expect([...algorithms.keys(), ...problems]).toEqual([])
  expect([...broken.keys()]).toEqual(['x'])
  expect(broken.get('x')).toMatch(words)
  expect(broken.get('x')).not.toMatch(/\n|Invalid type/)
})

test('all problems of a manifest are told at once', async () => {
  write('x', 'comand: [sh]\noutput: xml\n')
  expect((await find()).broken.get('x')).toMatch(/command is missing.*output must be.*unknown key comand/)
})

test('a program that may not be executed is told with the cure', async () => {
  const folder = write('x', 'command: [./run.sh]')
  writeFileSync(join(folder, 'run.sh'), '#!/bin/sh\n', { mode: 0o644 })
  expect((await find()).broken.get('x')).toMatch(/is not executable; allow it with: chmod \+x \/.*run\.sh$/)
  chmodSync(join(folder, 'run.sh'), 0o755)
  expect((await find()).algorithms.has('x')).toBe(true)
})

test('a manifest that is huge, a folder or a pipe without a writer is not read', async () => {
  write('huge', `command: [sh]\n${'#'.repeat(70_000)}`)
  mkdirSync(join(dir, 'folder/algorithm.yaml'), { recursive: true })
  mkdirSync(join(dir, 'device'))
  symlinkSync('/dev/zero', join(dir, 'device/algorithm.yaml'))
  const { broken } = await find()
  expect(broken.get('huge')).toMatch(/is larger than 65536 bytes$/)
  expect(broken.get('folder')).toMatch(/is no file$/)
  expect(broken.get('device')).toMatch(/is no file$/)
})

test('the first of two algorithms of one name is used, and the second is told', async () => {
  write('x', 'command: [sh]\nversion: first', join(dir, 'a'))
  write('other', 'name: x\ncommand: [sh]\nversion: second', join(dir, 'b'))
  const { algorithms, problems } = await find(join(dir, 'a'), join(dir, 'b'))
  expect(algorithms.get('x')?.version).toBe('first')
  expect(problems).toEqual([`${dir}/b/other: algorithm x is there already, in ${dir}/a/x; the first one is used`])
})

test('where the first is broken the second is used, and that is told, in either order', async () => {
  write('x', 'comand: [sh]', join(dir, 'a'))
  write('x', 'command: [sh]', join(dir, 'b'))
  for (const dirs of [
    ['a', 'b'],
    ['b', 'a'],
  ]) {
    const { algorithms, problems, broken } = await find(...dirs.map((name) => join(dir, name)))
    expect(algorithms.get('x')?.dir).toBe(`${dir}/b/x`)
    expect([...broken]).toEqual([])
    expect(problems).toEqual([expect.stringMatching(/a\/x\/.*unknown key comand.*; \/.*\/b\/x is used in its place$/)])
  }
})

test('a broken algorithm is known by its name, not by its folder', async () => {
  write('folder', 'name: x\ncommand: [./gone]')
  expect([...(await find()).broken.keys()]).toEqual(['x'])
})

test('a folder whose name cannot be a type needs a name', async () => {
  write('Folder', 'command: [sh]')
  expect((await find()).broken.get('Folder')).toMatch(/give a name: in the manifest$/)
})

test('files, hidden folders and folders without a manifest are no algorithms; a folder that is missing is told', async () => {
  write('.hidden', 'command: [sh]')
  mkdirSync(join(dir, 'samples'))
  writeFileSync(join(dir, 'README.md'), '')
  const { algorithms, broken, problems } = await find(dir, join(dir, 'gone'))
  expect([...algorithms, ...broken]).toEqual([])
  expect(problems).toEqual([expect.stringMatching(/^ALGORITHM_DIRS: folder \/.*\/gone cannot be read \(ENOENT\)/)])
})

test('an algorithm folder may be a link, and its path may hold what String.replace takes for a pattern', async () => {
  const folder = write("$&$'x", 'name: x\ncommand: ["{dir}/run.sh", "{dir}/run.sh"]')
  writeFileSync(join(folder, 'run.sh'), '#!/bin/sh\n', { mode: 0o755 })
  symlinkSync(folder, join(dir, 'zlink'))
  const { algorithms, broken, problems } = await find()
  expect([...broken]).toEqual([])
  expect(problems).toHaveLength(1)
  const algorithm = algorithms.get('x')!
  const [program, argument] = commandFor(algorithm, { ttr: 1, uuid: 'u', attempt: 1 })
  expect([program, argument]).toEqual([`${folder}/run.sh`, `${folder}/run.sh`])
  expect(await resolveProgram(algorithm, program as string, PATH)).toBe(`${folder}/run.sh`)
})

test('bare names are looked up in absolute folders of PATH only, in order', () => {
  for (const name of ['a', 'b']) {
    mkdirSync(join(dir, name))
    writeFileSync(join(dir, name, 'tool'), '#!/bin/sh\n', { mode: name === 'a' ? 0o644 : 0o755 })
  }
  const algorithm = makeAlgorithm(dir, {})
  expect(resolveProgram(algorithm, 'tool', `:.:${dir}/a:${dir}/b`)).toBe(`${dir}/b/tool`)
  expect(() => resolveProgram(algorithm, 'tool', 'b:.:')).toThrow(/is not in PATH/)
})

test('a manifest that is nested without end breaks itself, not the worker', async () => {
  // The reader of YAML recurses: at this depth V8 ends the whole process, with nothing to catch.
  for (const [i, open] of ['[', '{', '{a: ', '- ', '? ', '- - '].entries())
    write(`deep${i}`, open.repeat(Math.floor(60_000 / open.length)))
  write('deep', `command: [sh]\nenv: {A: b}\ndescription: ${'['.repeat(70)}${']'.repeat(70)}\n`)
  write('sound', 'command: [sh]\n')
  const { algorithms, broken } = await find()
  expect([...algorithms.keys()]).toEqual(['sound'])
  expect([...broken.values()]).toHaveLength(7)
  for (const reason of broken.values())
    expect(reason).toMatch(/algorithm\.yaml: it is nested more than 64 levels deep$/)
})

test('a key of a manifest is shown on one line, and not at any length', async () => {
  write('strange', `command: [sh]\n"a\\n\\e[2J${'b'.repeat(900)}": 1\n`)
  const { broken } = await find()
  expect(broken.get('strange')).toMatch(/algorithm\.yaml: unknown key a \[2Jb+\.\.\.; known are name/)
  expect(broken.get('strange')?.length).toBeLessThan(500)
})
