import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { SMTPServer } from 'smtp-server'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { runAlgorithm, UUID } from './child.ts'

const PASSWORD = 'correct horse'

interface Received {
  readonly from: string
  readonly to: readonly string[]
  readonly source: string
}

let received: Received[]
let server: SMTPServer
let settings: Record<string, unknown>

function refusal(message: string, responseCode: number): Error {
  return Object.assign(new Error(message), { responseCode })
}

/** Addresses decide what happens: gone@ is refused for good, busy@ for now. */
function makeServer(): SMTPServer {
  return new SMTPServer({
    disabledCommands: ['STARTTLS'],
    authOptional: true,
    allowInsecureAuth: true,
    logger: false,
    onAuth(auth, _session, callback) {
      if (auth.password === PASSWORD) callback(null, { user: auth.username })
      else callback(refusal(`no entry with ${auth.password}`, 535))
    },
    onRcptTo({ address }, _session, callback) {
      if (address.startsWith('gone@')) callback(refusal('no such mailbox', 550))
      else if (address.startsWith('busy@')) callback(refusal('mailbox busy', 450))
      else callback()
    },
    onData(stream, session, callback) {
      const chunks: Buffer[] = []
      stream.on('data', (chunk) => chunks.push(chunk))
      stream.on('end', () => {
        const { mailFrom, rcptTo } = session.envelope
        received.push({
          from: mailFrom ? mailFrom.address : '',
          to: rcptTo.map(({ address }) => address),
          source: Buffer.concat(chunks).toString('utf8'),
        })
        callback(null, 'taken')
      })
    },
  })
}

beforeEach(async () => {
  received = []
  server = makeServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.server.address() as AddressInfo
  settings = { SMTP_HOST: '127.0.0.1', SMTP_PORT: port, SMTP_SECURE: 'none', SMTP_FROM: 'Worker <worker@example.org>' }
})

afterEach(async () => {
  await new Promise<void>((resolve) => server.close(resolve))
})

const MAIL = { to: 'a@example.org', subject: 'Hello', text: 'A line.' }

const send = (payload: unknown, more: Record<string, unknown> = {}) =>
  runAlgorithm('mail', payload, { settings: { ...settings, ...more } })

const legacy = (text: string) => ({ foo: 'bar', '23': '42', payload: Buffer.from(text).toString('base64') })

/** Header names in lower case; folded lines joined. */
function headersOf(source: string): Map<string, string> {
  const head = source.slice(0, source.indexOf('\r\n\r\n')).replace(/\r\n[ \t]+/g, ' ')
  return new Map(
    head
      .split('\r\n')
      .map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 2)]),
  )
}

function decodeWords(text = ''): string {
  const joined = text.replace(/\?=\s+=\?/g, '?==?')
  return joined.replace(/=\?UTF-8\?([BQ])\?([^?]*)\?=/gi, (_, how, word) =>
    how.toUpperCase() === 'B'
      ? Buffer.from(word, 'base64').toString('utf8')
      : decodeURIComponent(word.replaceAll('_', ' ').replaceAll('=', '%')),
  )
}

describe('mail that is sent', () => {
  it('goes to all recipients in one transaction, with an id made of the uuid', async () => {
    const payload = {
      to: ['a@example.org', 'B. <b@example.org>'],
      cc: 'c@example.org',
      subject: 'Grüße, 你好 and a long subject that needs folding, surely it does',
      text: 'Äpfel',
      html: '<p>Äpfel</p>',
      reply_to: 'r@example.org',
    }
    const ended = await send(payload)
    expect(ended).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse(ended.stdout)).toMatchObject({
      message_id: `<${UUID}.qworker@example.org>`,
      accepted: ['a@example.org', 'b@example.org', 'c@example.org'],
      rejected: [],
    })
    expect(received).toHaveLength(1)
    const [mail] = received
    expect(mail).toMatchObject({ from: 'worker@example.org', to: ['a@example.org', 'b@example.org', 'c@example.org'] })
    const headers = headersOf(mail?.source ?? '')
    expect(decodeWords(headers.get('subject'))).toBe(payload.subject)
    expect(headers.get('from')).toBe('Worker <worker@example.org>')
    expect(headers.get('reply-to')).toBe('r@example.org')
    expect(headers.get('message-id')).toBe(`<${UUID}.qworker@example.org>`)
  })

  it('takes the older form, and keeps a value that holds "::"', async () => {
    const text =
      'Header::X-Campaign: 7\nMIME-Version: 1.0|To::a@example.org|To::b@example.org|From::s@example.org|Subject::Größe::2|Body::see std::vector|Nonsense::x'
    const ended = await send(legacy(text))
    expect(ended.code).toBe(0)
    expect(ended.stderr).toContain('"Nonsense" is ignored')
    expect(received).toHaveLength(1)
    const source = received[0]?.source ?? ''
    const headers = headersOf(source)
    expect(decodeWords(headers.get('subject'))).toBe('Größe::2')
    expect(headers.get('from')).toBe('s@example.org')
    expect(headers.get('x-campaign')).toBe('7')
    expect(source).toContain('see std::vector')
    expect(received[0]).toMatchObject({ from: 'worker@example.org', to: ['a@example.org', 'b@example.org'] })
  })

  it('succeeds when some recipients are refused, and names them: a retry would write to the others twice', async () => {
    const ended = await send({ ...MAIL, to: ['a@example.org', 'gone@example.org', 'busy@example.org'] })
    expect(ended.code).toBe(0)
    const result = JSON.parse(ended.stdout)
    expect(result.accepted).toEqual(['a@example.org'])
    expect(result.rejected).toMatchObject([
      { address: 'gone@example.org', code: 550 },
      { address: 'busy@example.org', code: 450 },
    ])
  })

  it('logs in when a user is set', async () => {
    const ended = await send(MAIL, { SMTP_USER: 'me', SMTP_PASSWORD: PASSWORD })
    expect(ended.code).toBe(0)
    expect(ended.stdout + ended.stderr).not.toContain(PASSWORD)
  })
})

describe('mail that is not sent', () => {
  it('is bad input when every recipient is refused for good, and tried later when one is only busy', async () => {
    const gone = await send({ ...MAIL, to: 'gone@example.org' })
    expect(gone).toMatchObject({ code: 65, stdout: '' })
    expect(gone.stderr).toMatch(/refused the mail for good for gone@example\.org/)
    const busy = await send({ ...MAIL, to: ['gone@example.org', 'busy@example.org'] })
    expect(busy).toMatchObject({ code: 75, stdout: '' })
  })

  it('is tried later when nobody listens', async () => {
    const probe = createServer()
    const port = await new Promise<number>((resolve) =>
      probe.listen(0, '127.0.0.1', () => resolve((probe.address() as AddressInfo).port)),
    )
    await new Promise((resolve) => probe.close(resolve))
    const ended = await send(MAIL, { SMTP_PORT: port })
    expect(ended).toMatchObject({ code: 75, stdout: '' })
    expect(ended.stderr).toMatch(/did not take the mail now.*ECONNREFUSED/)
  })

  it('never shows the password, even when the server repeats it', async () => {
    const ended = await send(MAIL, { SMTP_USER: 'me', SMTP_PASSWORD: 'wrong-secret' })
    expect(ended).toMatchObject({ code: 78, stdout: '' })
    expect(ended.stderr).toContain('no entry with ***')
    expect(JSON.stringify({ ...ended.files, '.settings.json': '', e: ended.stderr })).not.toContain('wrong-secret')
  })

  it.each([
    ['no host is set', { SMTP_HOST: undefined }, /SMTP_HOST is not set; put/],
    ['the port is none', { SMTP_PORT: '99999' }, /SMTP_PORT is "99999"/],
    ['the way to secure is unknown', { SMTP_SECURE: 'maybe' }, /expected none, starttls or tls/],
    ['there is no sender', { SMTP_FROM: undefined }, /no sender; set SMTP_FROM/],
    ['STARTTLS is asked of a server without it', { SMTP_SECURE: 'starttls' }, /does not offer STARTTLS/],
  ])('ends with 78 when %s', async (_, more, reason) => {
    const ended = await send(MAIL, more)
    expect(ended.stderr).toMatch(reason)
    expect(ended).toMatchObject({ code: 78, stdout: '' })
    expect(received).toHaveLength(0)
  })

  it.each<[string, unknown, RegExp]>([
    ['is not JSON', 'nope', /not JSON/],
    ['has no recipient', { subject: 's', text: 't' }, /to is missing/],
    ['has no text', { to: 'a@example.org', subject: 's' }, /neither "text" nor "html"/],
    ['has attachments', { ...MAIL, attachments: [{ path: '/etc/passwd' }] }, /unknown key "attachments"/],
    ['has a text that is a file', { ...MAIL, text: { path: '/etc/passwd' } }, /expected text/],
    ['has a line break in the subject', { ...MAIL, subject: 'x\r\nBcc: v@example.org' }, /on one line/],
    ['has a line break in an address', { ...MAIL, to: 'a@example.org\nBcc: v@example.org' }, /one address/],
    ['has a line break in a name', { ...MAIL, from: 'A\r\nBcc: v@example.org <a@example.org>' }, /one address/],
    ['has a list in one address', { ...MAIL, to: 'a@example.org, v@example.org' }, /one address/],
    ['has an address that ends its command', { ...MAIL, to: 'a@example.org> NOTIFY=NEVER' }, /one address/],
    ['is base64 of no text', { payload: '/////w==' }, /not UTF-8/],
    ['is not base64', { payload: 'To::a@example.org' }, /not base64/],
    [
      'adds a Bcc header',
      legacy('Header::Bcc: v@example.org|To::a@example.org|Subject::s|Body::b'),
      /header "Bcc" is not allowed/,
    ],
    [
      'changes the content type by a header',
      legacy('Header::Content-Type: text/html|To::a@example.org|Subject::s|Body::b'),
      /not allowed/,
    ],
    ['folds a header', legacy('Header::X-A: 1\n Bcc: v@example.org|To::a@example.org|Subject::s|Body::b'), /malformed/],
    [
      'breaks a header with a bare CR',
      legacy('Header::X-A: 1\rBcc: v@example.org|To::a@example.org|Subject::s|Body::b'),
      /malformed/,
    ],
  ])('is bad input when the payload %s', async (_, payload, reason) => {
    const ended = await send(payload)
    expect(ended.stderr).toMatch(reason)
    expect(ended).toMatchObject({ code: 65, stdout: '' })
    expect(received).toHaveLength(0)
  })
})
