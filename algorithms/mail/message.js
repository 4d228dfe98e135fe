/** The payload of a mail job: what may be in it, and what it comes to. Pure. */

/** The payload is wrong, and would be wrong again. */
export class BadMail extends Error {}

const MAX_RECIPIENTS = 100
const MAX_SUBJECT = 900
const KEYS = ['to', 'cc', 'subject', 'text', 'html', 'from', 'reply_to']
/** Keys that the older producer always wrote beside its payload. */
const LEGACY_COMPANIONS = ['foo', '23']

/** Header lines that the older form may add. None of them changes who gets the mail, who it is from, or what it holds. */
const ALLOWED_HEADERS = [
  'reply-to',
  'organization',
  'importance',
  'priority',
  'precedence',
  'auto-submitted',
  'sensitivity',
]
const ALLOWED_PREFIXES = /^(?:x|list)-[a-z0-9-]+$/
/** Lines that the older form had to write itself; here they are made from the other tags, and left out. */
const OWN_HEADERS = ['to', 'from', 'subject', 'date', 'mime-version', 'content-transfer-encoding']

/**
 * @typedef {{ name: string, address: string }} Address
 * @typedef {object} Message
 * @property {Address[]} to
 * @property {Address[]} cc
 * @property {Address | undefined} from undefined: the configured sender
 * @property {Address | undefined} replyTo
 * @property {string} subject
 * @property {string | undefined} text
 * @property {string | undefined} html
 * @property {Record<string, string>} headers
 */

/**
 * @param {string} source JSON
 * @returns {{ message: Message, remarks: string[] }} remarks: what was left out, and why
 * @throws BadMail
 */
export function parseMessage(source) {
  let payload
  try {
    payload = JSON.parse(source)
  } catch {
    throw new BadMail(
      'the payload is not JSON; give an object such as {"to": "a@example.org", "subject": "...", "text": "..."}',
    )
  }
  if (typeof payload !== 'object' || payload === null || Array.isArray(payload)) {
    throw new BadMail(
      'the payload is not an object; give one such as {"to": "a@example.org", "subject": "...", "text": "..."}',
    )
  }
  const isLegacy = payload.payload !== undefined
  const known = isLegacy ? ['payload', ...LEGACY_COMPANIONS] : KEYS
  const unknown = Object.keys(payload).filter((key) => !known.includes(key))
  if (unknown.length > 0)
    throw new BadMail(`unknown key ${unknown.slice(0, 5).map(quote).join(', ')}; known are ${known.join(', ')}`)
  const read = isLegacy ? readLegacy(payload.payload) : readPlain(payload)
  const recipients = read.message.to.length + read.message.cc.length
  if (recipients > MAX_RECIPIENTS)
    throw new BadMail(`there are ${recipients} recipients, at most ${MAX_RECIPIENTS} are allowed; make several jobs`)
  return read
}

function readPlain(payload) {
  const { text, html } = payload
  if (text === undefined && html === undefined) throw new BadMail('the mail has neither "text" nor "html"; give one')
  const message = {
    to: readAddresses(payload.to, 'to'),
    cc: payload.cc === undefined ? [] : readAddresses(payload.cc, 'cc'),
    from: payload.from === undefined ? undefined : readAddress(payload.from, 'from'),
    replyTo: payload.reply_to === undefined ? undefined : readAddress(payload.reply_to, 'reply_to'),
    subject: readSubject(payload.subject, 'subject'),
    text: text === undefined ? undefined : readBody(text, 'text'),
    html: html === undefined ? undefined : readBody(html, 'html'),
    headers: {},
  }
  return { message, remarks: [] }
}

/** `Tag::value` items between `|`. A value is all that follows the first `::`. */
function readLegacy(encoded) {
  const items = decodeBase64(encoded).split('|')
  const found = { Header: [], To: [], From: [], Subject: [], Body: [] }
  const remarks = []
  for (const item of items) {
    if (item.trim() === '') continue
    const cut = item.indexOf('::')
    const tag = cut < 0 ? item : item.slice(0, cut)
    const values = Object.hasOwn(found, tag) && cut >= 0 ? found[tag] : undefined
    if (values === undefined)
      remarks.push(
        `unexpected item ${quote(tag)} is ignored; known are ${Object.keys(found).join(', ')}, as Tag::value`,
      )
    else values.push(item.slice(cut + 2))
  }
  for (const tag of ['Header', 'From', 'Subject', 'Body']) {
    if (found[tag].length > 1)
      throw new BadMail(`the tag ${tag} stands ${found[tag].length} times; give it once (a value cannot hold "|")`)
  }
  const message = {
    to: readAddresses(found.To, 'To'),
    cc: [],
    from: found.From[0] ? readAddress(found.From[0], 'From') : undefined,
    replyTo: undefined,
    subject: readSubject(found.Subject[0] ?? '', 'Subject'),
    text: readBody(found.Body[0] ?? '', 'Body'),
    html: undefined,
    headers: readHeaders(found.Header[0] ?? '', remarks),
  }
  return { message, remarks }
}

function decodeBase64(encoded) {
  const compact = typeof encoded === 'string' ? encoded.replace(/[\r\n]/g, '') : ''
  if (compact !== '' && compact.length % 4 === 0 && /^[A-Za-z0-9+/]+={0,2}$/.test(compact)) {
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.from(compact, 'base64'))
    } catch {
      throw new BadMail(
        'payload is base64 of something that is not UTF-8 text; expected Tag::value items separated by |',
      )
    }
  }
  throw new BadMail(
    `payload is ${quote(encoded)}, which is not base64; expected base64 of Tag::value items separated by |`,
  )
}

function readHeaders(text, remarks) {
  const headers = {}
  for (const line of text.split(/\r?\n/)) {
    if (line === '') continue
    const match = /^([A-Za-z][A-Za-z0-9-]*): ?(.+)$/.exec(line)
    if (match === null || hasControls(line))
      throw new BadMail(`the header line ${quote(line)} is malformed; expected Name: value`)
    const [, name, value] = match
    const key = name.toLowerCase()
    if (OWN_HEADERS.includes(key) || (key === 'content-type' && /^text\/plain\b/i.test(value))) {
      remarks.push(`header ${name} is left out; it is made from the other tags`)
    } else if (ALLOWED_HEADERS.includes(key) || ALLOWED_PREFIXES.test(key)) {
      if (key === 'reply-to') readAddress(value, 'Reply-To')
      headers[name] = value
    } else {
      throw new BadMail(
        `the header ${quote(name)} is not allowed; allowed are X-..., List-..., ${ALLOWED_HEADERS.join(', ')}`,
      )
    }
  }
  return headers
}

function readAddresses(value, name) {
  const list = Array.isArray(value) ? value : value === undefined ? [] : [value]
  if (list.length === 0) throw new BadMail(`${name} is missing or empty; give at least one address`)
  return list.map((entry, i) => readAddress(entry, Array.isArray(value) && list.length > 1 ? `${name}[${i}]` : name))
}

/** One address, alone or as `Name <address>`. Lists and groups are refused, so that nobody is written to unseen. */
export function readAddress(value, name) {
  const text = typeof value === 'string' ? value.trim() : ''
  const match = /^(?:"?([^"<>]*?)"?\s*<([^<>]+)>|([^<>]+))$/.exec(text)
  const address = match?.[2] ?? match?.[3] ?? ''
  const isAddress = address.length <= 254 && /^[^\s@<>()[\]\\,;:"]{1,64}@[^\s@<>()[\]\\,;:"_]+$/.test(address)
  if (typeof value !== 'string' || hasControls(value) || !isAddress) {
    throw new BadMail(
      `${name} is ${quote(value)}; expected one address such as "a@example.org" or "A. Name <a@example.org>", on one line`,
    )
  }
  return { name: match[1] ?? '', address }
}

function readSubject(value, name) {
  if (typeof value === 'string' && value.length <= MAX_SUBJECT && !hasControls(value) && value.isWellFormed())
    return value
  throw new BadMail(`${name} is ${quote(value)}; expected text on one line, at most ${MAX_SUBJECT} characters`)
}

function readBody(value, name) {
  if (typeof value === 'string') return value
  throw new BadMail(`${name} is ${quote(value)}; expected text`)
}

/** Control characters end a header line in some server or other; the separators end a line for some readers. */
function hasControls(text) {
  return /[\0-\x1f\x7f-\x9f\u2028\u2029]/.test(text)
}

function quote(value) {
  const json = JSON.stringify(value) ?? 'missing'
  return json.length > 60 ? `${json.slice(0, 57)}...` : json
}
