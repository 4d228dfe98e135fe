/** Sends one e-mail: payload on stdin, SMTP settings in .settings.json, what became of each recipient on stdout. */

import { existsSync, readFileSync } from 'node:fs'
import nodemailer from 'nodemailer'
import { BadMail, parseMessage, readAddress } from './message.js'

const EXIT_BAD_INPUT = 65
const EXIT_TRY_LATER = 75
const EXIT_CONFIG = 78
const TIMEOUT_MS = 10_000

/** The mail cannot be sent as things stand. `exitCode` tells the worker whether to try again. */
class MailFailure extends Error {
  constructor(exitCode, message) {
    super(message)
    this.exitCode = exitCode
  }
}

/** The defaults of each way to secure the connection. */
const SECURE = {
  none: { port: 25, secure: false, ignoreTLS: true },
  starttls: { port: 587, secure: false, requireTLS: true },
  tls: { port: 465, secure: true },
}

/**
 * @returns {{ host: string, port: number, how: object, user?: string, password?: string, from?: import('./message.js').Address }}
 * @throws MailFailure naming the key of the rc file
 */
function readSettings() {
  const file = '.settings.json'
  const settings = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
  const {
    SMTP_HOST: host,
    SMTP_SECURE: secure = 'starttls',
    SMTP_USER: user,
    SMTP_PASSWORD: password,
    SMTP_FROM: from,
  } = settings
  if (!host)
    throw new MailFailure(
      EXIT_CONFIG,
      "SMTP_HOST is not set; put the name of the mail server into the worker's rc file, as SMTP_HOST",
    )
  if (!Object.hasOwn(SECURE, secure))
    throw new MailFailure(EXIT_CONFIG, `SMTP_SECURE is ${JSON.stringify(secure)}; expected none, starttls or tls`)
  const { port: usual, ...how } = SECURE[secure]
  const port = Number(settings.SMTP_PORT ?? usual)
  if (!Number.isInteger(port) || port < 1 || port > 65535)
    throw new MailFailure(
      EXIT_CONFIG,
      `SMTP_PORT is ${JSON.stringify(settings.SMTP_PORT)}; expected a number from 1 to 65535`,
    )
  if (Boolean(user) !== Boolean(password))
    throw new MailFailure(EXIT_CONFIG, 'only one of SMTP_USER and SMTP_PASSWORD is set; set both, or none')
  return {
    host,
    port,
    how,
    user: user && String(user),
    password: password && String(password),
    from: from && parseSender(from),
  }
}

/** The same for all attempts at a job, so that a mail that was sent twice can be recognised. */
function messageIdFor(uuid, from) {
  if (!/^[0-9a-f]{32}$/.test(uuid ?? '')) return undefined
  return `<${uuid}.qworker@${from.address.slice(from.address.lastIndexOf('@') + 1)}>`
}

function senderOf(message, settings) {
  if (message.from !== undefined) return message.from
  if (!settings.from)
    throw new MailFailure(
      EXIT_CONFIG,
      'the mail has no sender; set SMTP_FROM in the rc file of the worker, or give "from" in the payload',
    )
  return settings.from
}

/** @returns {Promise<object>} the result document */
async function deliver(message, settings) {
  const from = senderOf(message, settings)
  const recipients = [...message.to, ...message.cc].map(({ address }) => address)
  const transport = nodemailer.createTransport({
    host: settings.host,
    port: settings.port,
    ...settings.how,
    ...(settings.user && { auth: { user: settings.user, pass: settings.password } }),
    connectionTimeout: TIMEOUT_MS,
    greetingTimeout: TIMEOUT_MS,
    socketTimeout: TIMEOUT_MS,
    dnsTimeout: TIMEOUT_MS,
    disableFileAccess: true,
    disableUrlAccess: true,
  })
  const info = await transport.sendMail({
    from,
    to: message.to,
    cc: message.cc,
    replyTo: message.replyTo,
    subject: message.subject,
    text: message.text,
    html: message.html,
    headers: message.headers,
    messageId: messageIdFor(process.env.QWORKER_UUID, from),
    envelope: { from: (settings.from ?? from).address, to: recipients },
    disableFileAccess: true,
    disableUrlAccess: true,
  })
  return {
    message_id: info.messageId,
    accepted: info.accepted,
    rejected: (info.rejectedErrors ?? []).map((error) => ({
      address: error.recipient,
      code: error.responseCode,
      response: error.response,
    })),
    response: info.response,
  }
}

/** Decides what a failed delivery means. No recipient has got the mail, or the server did not confirm that one has. */
function failureOf(error, { host, port, user }) {
  if (error instanceof MailFailure) return error
  const server = `mail server ${host}:${port}`
  const said = error.response ?? error.message
  if (error.code === 'EAUTH' && !(error.responseCode < 500)) {
    return new MailFailure(
      EXIT_CONFIG,
      `${server} refused user ${user}: ${said}; correct SMTP_USER and SMTP_PASSWORD in the rc file of the worker`,
    )
  }
  if (error.code === 'ETLS' && error.responseCode >= 500) {
    return new MailFailure(EXIT_CONFIG, `${server} does not offer STARTTLS: ${said}; set SMTP_SECURE to tls or none`)
  }
  if (error.responseCode === 530) {
    return new MailFailure(
      EXIT_CONFIG,
      `${server} takes no mail without a user: ${said}; set SMTP_USER and SMTP_PASSWORD in the rc file of the worker`,
    )
  }
  const isAboutMail = error.code === 'EENVELOPE' || error.code === 'EMESSAGE'
  const replies = (error.rejectedErrors ?? [error]).map((each) => each.responseCode)
  // without a reply the library itself found an address that this server cannot be given
  if (isAboutMail && replies.every((code) => code === undefined || code >= 500)) {
    const who = error.rejected?.length ? ` for ${error.rejected.join(', ')}` : ''
    return new MailFailure(
      EXIT_BAD_INPUT,
      `${server} refused the mail for good${who}: ${said}; correct the addresses or the text`,
    )
  }
  return new MailFailure(
    EXIT_TRY_LATER,
    `${server} did not take the mail now (${error.code ?? error.name}): ${said}; it will be tried again`,
  )
}

/** A server may repeat what it was told. */
function withoutSecret(text, { user = '', password }) {
  if (!password) return text
  const plain = Buffer.from(`\0${user}\0${password}`).toString('base64')
  return [plain, Buffer.from(password).toString('base64'), password].reduce(
    (rest, secret) => rest.replaceAll(secret, '***'),
    text,
  )
}

async function main() {
  const { message, remarks } = parseMessage(readFileSync(0, 'utf8'))
  for (const remark of remarks) process.stderr.write(`mail: ${remark}\n`)
  const settings = readSettings()
  try {
    const result = await deliver(message, settings)
    process.stdout.write(`${withoutSecret(JSON.stringify(result), settings)}\n`)
  } catch (error) {
    const failure = failureOf(error, settings)
    throw new MailFailure(failure.exitCode, withoutSecret(failure.message, settings))
  }
}

function parseSender(from) {
  try {
    return readAddress(from, 'SMTP_FROM')
  } catch {
    throw new MailFailure(
      EXIT_CONFIG,
      `SMTP_FROM is ${JSON.stringify(from)}; expected one address such as "qworker@example.org"`,
    )
  }
}

try {
  await main()
} catch (error) {
  if (!(error instanceof MailFailure) && !(error instanceof BadMail)) throw error
  process.stderr.write(`mail: ${error.message.replace(/\s+/g, ' ')}\n`)
  process.exitCode = error.exitCode ?? EXIT_BAD_INPUT
}
