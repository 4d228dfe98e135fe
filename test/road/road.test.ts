import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { GetObjectCommand, ListObjectsCommand, S3Client } from '@aws-sdk/client-s3'
import S3rver from 's3rver'
import { SMTPServer } from 'smtp-server'
import { expect, onTestFinished, test } from 'vitest'
import { type Installation, install, leaveOut, PROJECT, type RunningWorker, until } from '../support/installation.ts'

// The SDK would print its warning about Node 20 among the test's lines.
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = 'true'

const S3_KEYS = { AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER' }
const shipped = { ALGORITHM_DIRS: `${PROJECT}/algorithms` }

async function startS3(): Promise<{ env: Record<string, string>; client: S3Client; server: Server }> {
  const directory = mkdtempSync(join(tmpdir(), 'qworker-s3-'))
  const s3 = new S3rver({
    address: '127.0.0.1',
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: 'results' }],
  })
  const { port } = await s3.run()
  const endpoint = `http://127.0.0.1:${port}`
  const client = new S3Client({
    endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER' },
  })
  onTestFinished(async () => {
    client.destroy()
    s3.httpServer.closeAllConnections()
    await new Promise((resolve) => s3.httpServer.close(resolve))
    rmSync(directory, { recursive: true })
  })
  const env = {
    ...S3_KEYS,
    S3_BUCKET: 'results',
    S3_PREFIX: 'prod/',
    S3_ENDPOINT: endpoint,
    S3_FORCE_PATH_STYLE: 'true',
  }
  return { env, client, server: s3.httpServer }
}

async function qproducer(home: Installation, worker: RunningWorker | undefined, ...args: string[]) {
  const env = {
    PATH: process.env.PATH ?? '',
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: String(home.broker.port),
    ...(worker === undefined ? {} : { RESULT_BASEURL: worker.url }),
  }
  return promisify(execFile)(join(PROJECT, 'bin', 'qproducer'), args, { env }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  )
}

test('the forecast of the real series is printed, served, and lies in S3, each the same; its plot opens in a browser', async () => {
  const home = await install(shipped)
  const s3 = await startS3()
  const worker = await home.startWorker(s3.env)
  const { code, stdout, stderr } = await qproducer(
    home,
    worker,
    '-a',
    'forecast',
    '-p',
    '{"sample":"co2","holdout":24}',
    '--ttr',
    '1m',
    '--wait',
  )
  expect(code, stderr).toBe(0)
  const document = JSON.parse(stdout)
  expect(document.result.forecast).toHaveLength(24)
  expect(document.result.forecast[0]).toMatchObject({
    mean: expect.any(Number),
    lower_95: expect.any(Number),
    upper_95: expect.any(Number),
  })
  expect(document.result.holdout.errors?.mae ?? document.result.holdout.mae).toBeLessThan(1.2)
  expect(new Date(document.timestamp).getTime()).toBeGreaterThan(Date.now() - 60_000)

  const url = /result URL: (\S+)/.exec(stderr)?.[1] ?? ''
  expect(execFileSync('curl', ['-sf', url], { encoding: 'utf8' })).toBe(stdout)

  const uuid = document.uuid
  await worker.waitFor('settlement', ({ event }) => event === 'job_settled')
  const get = async (name: string) =>
    (
      await s3.client.send(new GetObjectCommand({ Bucket: 'results', Key: `prod/${uuid}/${name}` }))
    ).Body!.transformToByteArray()
  expect(Buffer.from(await get('result.json')).toString()).toBe(stdout)
  expect(JSON.parse(Buffer.from(await get('status.json')).toString())).toMatchObject({
    state: 'complete',
    s3: { state: 'published' },
  })
  for (const { name, sha256 } of document.files)
    expect(
      createHash('sha256')
        .update(await get(name))
        .digest('hex'),
      name,
    ).toBe(sha256)

  const plot = await fetch(`${url}/plot.svg`)
  expect(plot.headers.get('content-type')).toMatch(/^image\/svg\+xml/)
  expect(await plot.text()).toMatch(/^<svg[^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"[\s\S]*<\/svg>\s*$|^<\?xml/)
})

test('a browser renders the plot at its URL, and reads the result from another origin', async (context) => {
  const browser = ['chromium', 'chromium-browser', 'google-chrome'].find(
    (name) => spawnSync(name, ['--version']).status === 0,
  )
  if (browser === undefined)
    leaveOut(context, 'no Chromium here to open the plot in (Debian: apt-get install chromium)')
  const home = await install(shipped)
  const worker = await home.startWorker()
  const { stdout } = await qproducer(home, worker, '-a', 'forecast', '-p', '{"sample":"co2"}', '--wait')
  const { uuid } = JSON.parse(stdout)
  const look = async (url: string) => {
    const profile = mkdtempSync(join(tmpdir(), 'qworker-browser-'))
    try {
      const flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        '--virtual-time-budget=5000',
        `--user-data-dir=${profile}`,
      ]
      return (await promisify(execFile)(browser!, [...flags, '--dump-dom', url], { maxBuffer: 2 ** 24 })).stdout
    } finally {
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
    }
  }
  expect(await look(`${worker.url}${uuid}/plot.svg`)).toMatch(/<svg[\s\S]*<path[\s\S]*<\/svg>/)
  const script = `fetch('${worker.url}${uuid}').then(r=>r.json()).then(d=>document.body.textContent='method '+d.result.method)`
  const site = createServer((_, response) =>
    response.setHeader('content-type', 'text/html').end(`<body><script>${script}</script>`),
  )
  onTestFinished(() => void site.close())
  await new Promise<void>((resolve) => site.listen(0, '127.0.0.1', resolve))
  const page = `http://127.0.0.1:${(site.address() as AddressInfo).port}/`
  expect(await look(page)).toMatch(/method \w+/)
})

test('an outage of S3 is told in log, status and health, delays the copy, and never runs the job again', async () => {
  const home = await install()
  home.addAlgorithm('once', 'echo run >> "$(dirname "$0")/runs"; wc -l < "$(dirname "$0")/runs"')
  const s3 = await startS3()
  let broken = false
  s3.server.prependListener('request', (_, response) => {
    if (!broken) return
    response.statusCode = 500
    response.end = () => response
    response.socket?.destroy()
  })
  const worker = await home.startWorker({ ...s3.env, S3_PATIENCE: '1' })
  broken = true
  const uuid = await home.putJob('once', {}, { ttr: 60 })
  const fault = await worker.waitFor('the fault', (line) => line.event === 'outbox_retry')
  expect(fault).toMatchObject({ uuid, tries: 1, error: expect.stringContaining('S3 bucket results') })
  expect(home.status(uuid)).toMatchObject({ state: 'complete', s3: { state: 'pending' } })
  expect((await fetch(worker.url + uuid)).status).toBe(200)
  await worker.waitFor('the end of the job', ({ event }) => event === 'job_settled')
  const health = (await (await fetch(`${worker.url}healthz`)).json()) as { outbox: object }
  expect(health.outbox).toMatchObject({ length: 1, error: expect.any(String) })
  broken = false
  await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
  const { Contents } = await s3.client.send(new ListObjectsCommand({ Bucket: 'results', Prefix: `prod/${uuid}/` }))
  expect(Contents?.map(({ Key }) => Key?.split('/').pop()).sort()).toEqual([
    'result.json',
    'status.json',
    'stderr.log',
    'stdout.log',
  ])
  expect(home.result(uuid)?.result).toBe(1)
})

test('the sample run of the ancestor: infinite loop killed, faulty exit 10, normal, removed from queue', async () => {
  const home = await install(shipped)
  const env = { LOG_FORMAT: 'text', CONCURRENCY: '1', GRACE_TIME: '1', RETRY_DELAY: '1' }
  const { stdout } = await qproducer(home, undefined, '-a', 'drunken_sailor', '-p', '{"seed":40}', '--ttr', '4')
  const uuid = /"uuid":"(\w+)"/.exec(stdout)?.[1] ?? ''
  const worker = await home.startWorker(env, ['-v'])
  await until('the end', () => worker.said.stdout.includes('Job completed, removing from queue.'))
  const lines = worker.said.stdout
    .slice(worker.said.stdout.indexOf('###'))
    .replace(/\d{3,}(?!\w)/g, 'PID')
    .split('\n')
  const head = [
    `### Dequeued job ${uuid}, algorithm drunken_sailor`,
    ` + result directory: ${home.results}/${uuid.slice(0, 2)}/${uuid}`,
    ' + input data: {"seed":40}',
    ' + time left for processing: 4',
    ' + job queue priority: PID',
    // the algorithm's own lines are told when it has ended
  ]
  const normalise = (text: string) => text.replace(/\d{3,}(?!\w)/g, 'PID')
  const expected = [
    ...head,
    'Algorithm did not terminate within expected timeframe.',
    'Attempting to kill algorithm PID PID',
    'Drunken sailor PID: PID',
    'Drunken Sailor: Infinite loop. ',
    'Algorithm ended: ended after 5 s (TTR + GRACE_TIME)',
    'Job failed, leaving job in queue.',
    'Next attempt in 1 s.',
    '',
    ...head,
    'Drunken sailor PID: PID',
    'Drunken Sailor: Faulty execution.',
    'Algorithm terminated within expected time constraints.',
    'Algorithm terminated with exitstatus 10',
    'Job failed, leaving job in queue.',
    'Next attempt in 2 s.',
    '',
    ...head,
    'Drunken sailor PID: PID',
    'Drunken Sailor: Normal execution.',
    'Algorithm terminated within expected time constraints.',
    'Algorithm terminated with exitstatus 0',
  ].map(normalise)
  expect(lines.slice(0, expected.length)).toEqual(expected)
  expect(home.status(uuid)?.attempts.map(({ outcome }) => outcome)).toEqual(['timed_out', 'failed', 'success'])
})

test('--wait takes its exit code from the outcome', async () => {
  const home = await install({ MAX_ATTEMPTS: '1' })
  home.addAlgorithm('ten', 'exit 10')
  home.addAlgorithm('picky', 'exit 65')
  home.addAlgorithm('crash', 'kill -TERM $$')
  home.addAlgorithm('slow', 'sleep 60')
  const worker = await home.startWorker({ GRACE_TIME: '0', CONCURRENCY: '4' })
  const codes = await Promise.all(
    ['ten', 'picky', 'crash', 'slow'].map((type) =>
      qproducer(home, worker, '-a', type, '--ttr', '1', '--wait').then(({ code }) => code),
    ),
  )
  expect(codes).toEqual([10, 65, 143, 124])
})

test('mail goes out through the server of the rc file; its password is in no environment, argument or published file', async () => {
  const home = await install(shipped)
  const mails: string[] = []
  const server = new SMTPServer({
    authOptional: false,
    disabledCommands: ['STARTTLS'],
    allowInsecureAuth: true,
    onAuth: ({ username, password }, _, done) =>
      password === 'tr0ub4dor' ? done(null, { user: username }) : done(new Error('no')),
    onData(stream, _, done) {
      let text = ''
      stream.on('data', (chunk) => {
        text += chunk
      })
      stream.on('end', () => {
        mails.push(text)
        done()
      })
    },
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => new Promise<void>((resolve) => void server.close(() => resolve())))
  home.addAlgorithm('nosy', 'env; cat .settings.json 2>&1 || true')
  const worker = await home.startWorker({
    ALGORITHM_DIRS: `${home.algorithms},${PROJECT}/algorithms`,
    SMTP_HOST: '127.0.0.1',
    SMTP_PORT: String((server.server.address() as AddressInfo).port),
    SMTP_SECURE: 'none',
    SMTP_USER: 'worker',
    SMTP_PASSWORD: 'tr0ub4dor',
    SMTP_FROM: 'worker@example.org',
  })
  const sent = await home.putJob('mail', { to: 'ann@example.org', subject: 'Fertig ✓', text: 'It is done.' })
  const nosy = await home.putJob('nosy')
  await until('both are complete', () => [sent, nosy].every((uuid) => home.result(uuid) !== undefined))
  expect(mails).toHaveLength(1)
  expect(mails[0]).toMatch(/^To: ann@example\.org\r$/m)
  expect(home.result(sent)).toMatchObject({ result: { accepted: ['ann@example.org'] }, files: [] })
  expect(String(home.result(nosy)?.result)).toMatch(/\.settings\.json: No such file/)
  // The scratch directories, with the settings of the one that asked for them, are removed by then.
  await worker.stop()
  const documents = listFiles(home.results)
    .map((file) => readFileSync(file, 'utf8'))
    .join('')
  expect(documents + worker.said.stdout + worker.said.stderr).not.toContain('tr0ub4dor')
})

function listFiles(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
}
