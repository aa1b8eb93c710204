//! A small synchronous initiator that does as it is told, right or wrong.
//!
//! Not here: the target's own encoders, on purpose: what both sides have wrong would not be found.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) const NO_TAG: u32 = u32::MAX;

/// A PDU, either way.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) head: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn new(opcode: u8, flags: u8, tag: u32) -> Self {
        let mut head = [0; 48];
        (head[0], head[1]) = (opcode, flags);
        Pdu { head, data: Vec::new() }.with(16, tag)
    }

    pub(crate) fn with(mut self, at: usize, value: u32) -> Self {
        self.head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.head[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub(crate) fn lun(self, lun: u8) -> Self {
        self.bytes(8, &[0, lun])
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.head[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn tag(&self) -> u32 {
        self.u32(16)
    }

    /// As it travels, with the length that it has.
    pub(crate) fn encode(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut out = self.head.to_vec();
        out[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        if header_digest {
            let digest = crc32c(&out).to_le_bytes();
            out.extend(digest);
        }
        let start = out.len();
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(4), 0);
        if data_digest && !self.data.is_empty() {
            let digest = crc32c(&out[start..]).to_le_bytes();
            out.extend(digest);
        }
        out
    }
}

/// Bit by bit, as the standard defines it.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

pub(crate) fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

pub(crate) fn pairs(text: &[u8]) -> BTreeMap<String, String> {
    let pairs = text.split(|b| *b == 0).filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| String::from_utf8(pair.to_vec()).unwrap());
    pairs.map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

/// How to log in.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) initiator: String,
    pub(crate) target: Option<String>,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) cid: u16,
    pub(crate) cmd_sn: u32,
    /// Said in the operational stage.
    pub(crate) keys: Vec<(&'static str, &'static str)>,
}

impl Login {
    pub(crate) fn to(target: &str) -> Self {
        Login {
            initiator: "iqn.2026-01.test:initiator".into(),
            target: Some(target.into()),
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            cid: 0,
            cmd_sn: 100,
            keys: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, keys: &[(&'static str, &'static str)]) -> Self {
        self.keys.extend(keys);
        self
    }

    /// What the first request says.
    pub(crate) fn introduction(&self) -> Vec<u8> {
        let mut said = text(&[("InitiatorName", &self.initiator)]);
        match &self.target {
            Some(target) => said.extend(text(&[("TargetName", target), ("SessionType", "Normal")])),
            None => said.extend(text(&[("SessionType", "Discovery")])),
        }
        said
    }

    /// A login request; `flags` is its second byte.
    pub(crate) fn request(&self, flags: u8, said: &[u8]) -> Pdu {
        let [_, _, a, b] = u32::from(self.tsih).to_be_bytes();
        let isid = Pdu::new(0x43, flags, 7).bytes(8, &self.isid).bytes(14, &[a, b]);
        let [a, b] = self.cid.to_be_bytes();
        isid.bytes(20, &[a, b]).with(24, self.cmd_sn).data(said)
    }
}

/// A connection in its full feature phase.
pub(crate) struct Initiator {
    pub(crate) stream: TcpStream,
    pub(crate) tsih: u16,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
    /// What the target said in the operational stage.
    pub(crate) said: BTreeMap<String, String>,
    header_digest: bool,
    data_digest: bool,
    last_tag: u32,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) data: Vec<u8>,
    pub(crate) sense: Vec<u8>,
    /// Positive for more, negative for less than expected.
    pub(crate) residual: i64,
    /// Data-In PDUs.
    pub(crate) segments: u32,
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Receives a PDU; digests are checked.
pub(crate) fn receive(stream: &mut TcpStream, header_digest: bool, data_digest: bool) -> io::Result<Pdu> {
    let mut head = [0; 48];
    stream.read_exact(&mut head)?;
    let mut digest = [0; 4];
    if header_digest {
        stream.read_exact(&mut digest)?;
        assert_eq!(digest, crc32c(&head).to_le_bytes(), "a header's digest");
    }
    let len = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
    let mut data = vec![0; len.next_multiple_of(4)];
    stream.read_exact(&mut data)?;
    if data_digest && len > 0 {
        stream.read_exact(&mut digest)?;
        assert_eq!(digest, crc32c(&data).to_le_bytes(), "a data digest");
    }
    data.truncate(len);
    Ok(Pdu { head, data })
}

impl Initiator {
    /// Logs in without authentication; the status of a refusal.
    pub(crate) fn login(address: SocketAddr, login: &Login) -> Result<Initiator, u16> {
        let mut stream = connect(address);
        let mut said = login.introduction();
        let keys = [("HeaderDigest", "None"), ("MaxRecvDataSegmentLength", "262144")];
        let keys = keys.iter().filter(|(key, _)| login.keys.iter().all(|(k, _)| k != key)).chain(&login.keys);
        said.extend(text(&keys.copied().collect::<Vec<_>>()));
        stream.write_all(&login.request(0x87, &said).encode(false, false)).unwrap();
        let answer = receive(&mut stream, false, false).unwrap();
        assert_eq!(answer.opcode(), 0x23);
        let status = u16::from_be_bytes([answer.head[36], answer.head[37]]);
        if status != 0 {
            return Err(status);
        }
        assert_eq!(answer.head[1], 0x87, "the target goes on to the full feature phase");
        Ok(Initiator::after(stream, login, &answer))
    }

    /// After a login that `answer` ended.
    pub(crate) fn after(stream: TcpStream, login: &Login, answer: &Pdu) -> Initiator {
        let said = pairs(&answer.data);
        let is_on = |key: &str| said.get(key).is_some_and(|value| value == "CRC32C");
        Initiator {
            stream,
            tsih: u16::from_be_bytes([answer.head[14], answer.head[15]]),
            cmd_sn: login.cmd_sn,
            exp_stat_sn: answer.u32(24) + 1,
            exp_cmd_sn: answer.u32(28),
            max_cmd_sn: answer.u32(32),
            header_digest: is_on("HeaderDigest"),
            data_digest: is_on("DataDigest"),
            said,
            last_tag: u32::from(login.cid) << 16,
        }
    }

    pub(crate) fn tag(&mut self) -> u32 {
        self.last_tag += 1;
        self.last_tag
    }

    /// Sends a PDU with the numbers of the next command; an immediate one does not count.
    pub(crate) fn send(&mut self, pdu: Pdu) {
        let is_immediate = pdu.head[0] & 0x40 != 0;
        let pdu = pdu.with(24, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(u32::from(!is_immediate));
        self.send_as_it_is(pdu);
    }

    /// Sends a PDU without command number: a Data-Out, or one that has its own.
    pub(crate) fn send_as_it_is(&mut self, pdu: Pdu) {
        let pdu = pdu.with(28, self.exp_stat_sn);
        let bytes = pdu.encode(self.header_digest, self.data_digest);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a PDU whose data are damaged on the way.
    pub(crate) fn send_damaged(&mut self, pdu: Pdu) {
        assert!(self.data_digest);
        let pdu = pdu.with(28, self.exp_stat_sn);
        let mut bytes = pdu.encode(self.header_digest, true);
        let data = bytes.len() - 4 - pdu.data.len().next_multiple_of(4);
        bytes[data] ^= 0x40;
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn try_receive(&mut self) -> io::Result<Pdu> {
        let pdu = receive(&mut self.stream, self.header_digest, self.data_digest)?;
        let bears_status = match pdu.opcode() {
            0x25 => pdu.head[1] & 1 != 0,
            0x20 => pdu.tag() != NO_TAG,
            0x31 => false,
            _ => true,
        };
        if bears_status && pdu.u32(24) == self.exp_stat_sn {
            self.exp_stat_sn += 1;
        }
        let newer = |new: u32, old: u32| new.wrapping_sub(old) < 1 << 31;
        self.exp_cmd_sn = if newer(pdu.u32(28), self.exp_cmd_sn) { pdu.u32(28) } else { self.exp_cmd_sn };
        self.max_cmd_sn = if newer(pdu.u32(32), self.max_cmd_sn) { pdu.u32(32) } else { self.max_cmd_sn };
        Ok(pdu)
    }

    /// The next PDU, in the order of answers.
    pub(crate) fn receive(&mut self) -> Pdu {
        let due = self.exp_stat_sn;
        let pdu = self.try_receive().unwrap();
        let has_status = self.exp_stat_sn != due || matches!(pdu.opcode(), 0x25 | 0x20 | 0x31);
        assert!(has_status, "an answer out of order: {pdu:?}, {due} was due");
        pdu
    }

    /// Whether the target hangs up, without another word.
    pub(crate) fn is_hung_up(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// A command's header.
    pub(crate) fn command(&mut self, lun: u8, cdb: &[u8], flags: u8, expected: u32) -> Pdu {
        let tag = self.tag();
        Pdu::new(0x01, 0x80 | flags, tag).lun(lun).with(20, expected).bytes(32, cdb)
    }

    /// The rest of a command that was sent: data that are asked for, and its end.
    pub(crate) fn finish(&mut self, tag: u32, data_out: &[u8]) -> Answer {
        let mut answer = Answer { status: 0xff, data: Vec::new(), sense: Vec::new(), residual: 0, segments: 0 };
        loop {
            let pdu = self.receive();
            assert_eq!(pdu.tag(), tag, "{pdu:?}");
            let residual = match pdu.head[1] & 0x06 {
                0x04 => i64::from(pdu.u32(44)),
                0x02 => -i64::from(pdu.u32(44)),
                _ => 0,
            };
            match pdu.opcode() {
                0x25 => {
                    assert_eq!((pdu.u32(36), pdu.u32(40)), (answer.segments, answer.data.len() as u32));
                    answer.segments += 1;
                    answer.data.extend(&pdu.data);
                    if pdu.head[1] & 1 != 0 {
                        (answer.status, answer.residual) = (pdu.head[3], residual);
                        return answer;
                    }
                }
                0x31 => {
                    let (from, len) = (pdu.u32(40) as usize, pdu.u32(44) as usize);
                    self.data_out(tag, pdu.u32(20), from, &data_out[from..from + len]);
                }
                0x21 => {
                    assert_eq!(pdu.head[2], 0, "the target failed");
                    (answer.status, answer.residual) = (pdu.head[3], residual);
                    if !pdu.data.is_empty() {
                        assert_eq!(usize::from(u16::from_be_bytes([pdu.data[0], pdu.data[1]])), pdu.data.len() - 2);
                        answer.sense = pdu.data[2..].to_vec();
                    }
                    return answer;
                }
                other => panic!("opcode {other:#x} instead of a command's end: {pdu:?}"),
            }
        }
    }

    /// A burst of data, in segments of 8 KiB.
    pub(crate) fn data_out(&mut self, tag: u32, target_tag: u32, offset: usize, data: &[u8]) {
        let count = data.len().div_ceil(8192);
        for (i, part) in data.chunks(8192).enumerate() {
            let flags = if i + 1 == count { 0x80 } else { 0 };
            let pdu = Pdu::new(0x05, flags, tag).with(20, target_tag).with(36, i as u32);
            self.send_as_it_is(pdu.with(40, (offset + i * 8192) as u32).data(part));
        }
    }

    pub(crate) fn read(&mut self, lun: u8, lba: u32, blocks: u16) -> Answer {
        let command = self.command(lun, &read10(lba, blocks), 0x40, u32::from(blocks) * 512);
        let tag = command.tag();
        self.send(command);
        self.finish(tag, &[])
    }

    /// Writes with `immediate` bytes in the command.
    pub(crate) fn write(&mut self, lun: u8, lba: u32, data: &[u8], immediate: usize) -> Answer {
        let command = self.command(lun, &write10(lba, (data.len() / 512) as u16), 0x20, data.len() as u32);
        let tag = command.tag();
        self.send(command.data(&data[..immediate]));
        self.finish(tag, data)
    }

    /// A ping, to see that the connection is well.
    pub(crate) fn ping(&mut self) {
        let tag = self.tag();
        self.send(Pdu::new(0x40, 0x80, tag).with(20, NO_TAG).data(b"hello"));
        let pong = self.receive();
        assert_eq!((pong.opcode(), pong.tag(), pong.data.as_slice()), (0x20, tag, &b"hello"[..]));
    }

    /// A task management function for immediate delivery: its response.
    pub(crate) fn manage(&mut self, function: u8, lun: u8, referenced: u32, referenced_sn: u32) -> u8 {
        let tag = self.tag();
        let pdu = Pdu::new(0x42, 0x80 | function, tag).lun(lun).with(20, referenced).with(32, referenced_sn);
        self.send(pdu);
        loop {
            let pdu = self.receive();
            if pdu.opcode() == 0x22 && pdu.tag() == tag {
                return pdu.head[2];
            }
        }
    }

    /// Logs out: the response.
    pub(crate) fn log_out(&mut self, reason: u8, cid: u16) -> u8 {
        let tag = self.tag();
        let [a, b] = cid.to_be_bytes();
        self.send(Pdu::new(0x46, 0x80 | reason, tag).bytes(20, &[a, b]));
        let pdu = self.receive();
        assert_eq!((pdu.opcode(), pdu.tag()), (0x26, tag), "{pdu:?}");
        pdu.head[2]
    }
}

pub(crate) fn read10(lba: u32, blocks: u16) -> Vec<u8> {
    [&[0x28, 0][..], &lba.to_be_bytes(), &[0], &blocks.to_be_bytes(), &[0]].concat()
}

pub(crate) fn write10(lba: u32, blocks: u16) -> Vec<u8> {
    [&[0x2a, 0][..], &lba.to_be_bytes(), &[0], &blocks.to_be_bytes(), &[0]].concat()
}
